"""A finished run as others load it: `regen export run=FOLDER out=FOLDER`."""

from regen.config.command_line import main
from regen.config.schema import ExportConfig


@main("export")
def run(config: ExportConfig) -> None:
    import logging

    from regen.serving import NarrativeModel

    logger = logging.getLogger(__name__)
    model = NarrativeModel.from_run(config.run)
    logger.info("export: %s", model.save_pretrained(config.out))
    if config.push_to is not None:
        logger.info("export: %s", model.push_to_hub(config.push_to, private=config.private))
