"""`regen rate source=amazon2018 narrator=template rater=[local]`: lets language models rate narratives."""

from pathlib import Path
from typing import TYPE_CHECKING

from regen.config.command_line import main
from regen.config.schema import RateConfig

if TYPE_CHECKING:
    import polars as pl

    from regen.storage.artefacts import Artefact


@main("rate")
def run(config: RateConfig) -> None:
    import polars as pl

    from regen.commands.narrate import estimate_table
    from regen.narratives.choices import build_raters
    from regen.narratives.narrate import estimate
    from regen.narratives.rate import rate
    from regen.narratives.rater_checks import rating_cautions, told_apart
    from regen.narratives.subjects import controls_of, requests_of, subjects
    from regen.pipeline import HISTORY, data_artefact

    _refuse_to_narrate(config)
    data, narratives = (data_artefact(config), None) if config.run is None else written_by(Path(config.run))
    raters = build_raters(config.rater, max_cost=config.max_cost)
    if config.dry_run:
        people = subjects(data, max_history=HISTORY, users=config.users, narratives=narratives)
        controls = controls_of(people, config.controls)
        for rater in raters:
            requests = requests_of(rater, people, config.draws, controls)
            numbers = estimate(requests, endpoint=rater.endpoint, ledger=rater.ledger, limits=rater.run_limits)
            print(f"rater {rater.name}\n{estimate_table(numbers)}")  # noqa: T201
        return
    artefact = rate(
        raters,
        data=data,
        draws=config.draws,
        max_history=HISTORY,
        users=config.users,
        controls=config.controls,
        max_cost=config.max_cost,
        root=Path(config.paths.data_dir),
        narratives=narratives,
        force=config.force,
        engine=config.engine.build(),
    )
    ratings = pl.read_parquet(artefact.path / "ratings.parquet", glob=False)
    means = ratings.group_by("rater", "stage", "attribute").agg(
        pl.col("score").mean().round(2), pl.col("confidence").mean().round(2), users=pl.len()
    )
    agreement = pl.read_parquet(artefact.path / "agreement.parquet", glob=False)
    pairs = pl.read_parquet(artefact.path / "controls.parquet", glob=False)
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, fmt_str_lengths=60
    ):
        print(means.sort("rater", "stage", "attribute"))  # noqa: T201
        print(agreement.with_columns(pl.selectors.float().round(3)))  # noqa: T201
        if pairs.height:
            print(told_apart(pairs).with_columns(pl.selectors.float().round(3)))  # noqa: T201
    print("\n".join(["", *rating_cautions(ratings, pairs), "", str(artefact.path)]))  # noqa: T201


def _refuse_to_narrate(config: RateConfig) -> None:
    """Checks that narratives of an endpoint exist, because rating must not pay for new ones."""
    from regen.commands.narrate import estimate_of
    from regen.narratives.choices import build_narrator
    from regen.narratives.narrators import OpenAINarrator

    if config.run is not None or config.narrator.name != "openai":
        return
    narrator = build_narrator(config)
    assert isinstance(narrator, OpenAINarrator)
    numbers = estimate_of(narrator, config)
    if numbers["already_answered"] == 0:
        raise ValueError(
            f"narrator=openai: none of the {numbers['requests']:,} requests for narratives is answered yet. Run "
            "regen narrate with the same settings first. Its dry_run=true shows the cost."
        )


def written_by(folder: Path) -> "tuple[Artefact, pl.DataFrame]":
    """The data of a finished run, and its model's texts for the test users.

    Raises:
        ValueError: If the folder holds no finished run.
    """
    from regen.config.objects import read_run_config
    from regen.evaluation.prediction_files import read_predictions
    from regen.pipeline import check_task, data_artefact

    for name in ("config.yaml", "predictions.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name}, so this is no run that wrote narratives. Give a run's folder.")
    config = read_run_config(folder)
    check_task(config, folder)
    texts = read_predictions(folder / "predictions.jsonl").rename({"prediction": "text"})
    return data_artefact(config), texts
