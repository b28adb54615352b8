"""A finished run as others load it: `regen export run=FOLDER out=FOLDER`."""

from omegaconf import DictConfig

from regen.config.command_line import main


@main("export")
def run(cfg: DictConfig) -> None:
    import logging

    from regen.serving import NarrativeModel

    logger = logging.getLogger(__name__)
    model = NarrativeModel.from_run(cfg.run)
    logger.info("export: %s", model.save_pretrained(cfg.out))
    if cfg.push_to is not None:
        logger.info("export: %s", model.push_to_hub(cfg.push_to, private=cfg.private))
