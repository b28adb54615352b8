"""Stage `encode` alone: `regen encode source=xrec cf=bpr`."""

from omegaconf import DictConfig

from regen.config.command_line import main


@main("encode")
def run(cfg: DictConfig) -> None:
    from regen.pipeline import data_artefact, encoded_artefacts

    encoded_artefacts(cfg, ("cf", "content"), data_artefact(cfg), force=cfg.force)
