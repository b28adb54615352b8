"""Stage `encode` alone: `python -m regen.encode source=xrec cf=bpr`."""

from omegaconf import DictConfig

from regen.cli import main


@main("encode")
def run(cfg: DictConfig) -> None:
    from regen.pipeline import data_artefact, encoded_artefacts

    encoded_artefacts(cfg, ("cf", "content"), data_artefact(cfg), force=cfg.force)


if __name__ == "__main__":
    run()
