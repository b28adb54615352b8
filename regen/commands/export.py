"""A finished run as others load it: `regen export run=FOLDER out=FOLDER`."""

from pathlib import Path

from regen.config.command_line import main
from regen.config.schema import ExportConfig

MOST_EMPTY = 0.5  # share of empty texts above which a model is not exported


@main("export")
def run(config: ExportConfig) -> None:
    import logging

    from regen.serving import NarrativeModel

    logger = logging.getLogger(__name__)
    refuse_empty_texts(Path(config.run))
    model = NarrativeModel.from_run(config.run)
    logger.info("export: %s", model.save_pretrained(config.out))
    if config.push_to is not None:
        logger.info("export: %s", model.push_to_hub(config.push_to, private=config.private))


def refuse_empty_texts(run: Path) -> None:
    """Refuses a run whose evaluation wrote mostly empty texts.

    Raises:
        ValueError: If more than half of them are.
    """
    import polars as pl

    from regen.evaluation.comparison_cells import empty_share
    from regen.evaluation.scoring import EXAMPLES

    if not (path := run / EXAMPLES).is_file():
        return
    share = empty_share(pl.read_parquet(path, glob=False).filter(pl.col("system") == "model"))
    if share > MOST_EMPTY:
        raise ValueError(
            f"{run}: {share:.0%} of its texts for the test users are empty, and at most {MOST_EMPTY:.0%} may be. "
            "Train it longer or with lower rates."
        )
