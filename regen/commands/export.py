"""`regen export run=FOLDER out=FOLDER`: writes a finished run as a folder to share."""

from pathlib import Path

from regen.config.command_line import main
from regen.config.schema import ExportConfig

MOST_EMPTY = 0.5  # largest share of empty texts in an exported model


@main("export")
def run(config: ExportConfig) -> None:
    import logging

    from regen.config.objects import read_run_config
    from regen.serving import NarrativeModel
    from regen.serving.recommender import Recommender

    logger, folder = logging.getLogger(__name__), Path(config.run)
    refuse_empty_texts(folder)
    kind = Recommender if read_run_config(folder).task.ranks else NarrativeModel
    model = kind.from_run(folder)
    logger.info("export: %s", model.save_pretrained(config.out))
    if config.push_to is not None:
        logger.info("export: %s", model.push_to_hub(config.push_to, private=config.private))


def refuse_empty_texts(run: Path) -> None:
    """Checks that at most half of a run's texts for test users are empty.

    Raises:
        ValueError: If more are.
    """
    import polars as pl

    from regen.data.tables import NEXT_ITEM
    from regen.evaluation.comparison_cells import empty_share
    from regen.evaluation.scoring import EXAMPLES

    if not (path := run / EXAMPLES).is_file():
        return
    written = (pl.col("system") == "model") & (pl.col("feature") != NEXT_ITEM)
    share = empty_share(pl.read_parquet(path, glob=False).filter(written))
    if share > MOST_EMPTY:
        raise ValueError(
            f"{run}: {share:.0%} of its texts for the test users are empty, and at most {MOST_EMPTY:.0%} may be. "
            "Train it longer or with lower rates."
        )
