"""Stage `prepare` alone: `python -m regen.prepare source=xrec`."""

import logging

from omegaconf import DictConfig

from regen.cli import main


@main("prepare")
def run(cfg: DictConfig) -> None:
    from regen.pipeline import prepared_artefact

    artefact = prepared_artefact(cfg, force=cfg.force)
    for name, count in artefact.manifest["counts"].items():
        logging.getLogger(__name__).info("%12s  %s", f"{count:,}", name.replace("_", " "))


if __name__ == "__main__":
    run()
