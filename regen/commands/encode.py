"""`regen encode source=xrec cf=bpr`: runs only the stage `encode`."""

from regen.config.command_line import main
from regen.config.schema import EncodeConfig


@main("encode")
def run(config: EncodeConfig) -> None:
    from regen.pipeline import data_artefact, encoded_artefacts
    from regen.training.preflight import check_cf

    check_cf(config)
    encoded_artefacts(config, ("cf", "content"), data_artefact(config), force=config.force)
