"""Stage `rate` alone: `regen rate source=amazon2018 vertical=gift_cards narrator=template rater=[local]`."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from regen.config.command_line import main

if TYPE_CHECKING:
    import polars as pl

    from regen.storage.artefacts import Artefact


@main("rate")
def run(cfg: DictConfig) -> None:
    import polars as pl

    from regen.commands.narrate import estimate_table
    from regen.narratives.narrate import estimate
    from regen.narratives.rate import rate, requests_of, subjects
    from regen.pipeline import HISTORY, build_engine, build_raters, data_artefact

    _refuse_to_narrate(cfg)
    data, narratives = (data_artefact(cfg), None) if cfg.run is None else written_by(Path(cfg.run))
    raters = build_raters(cfg)
    if cfg.dry_run:
        people = subjects(data, max_history=HISTORY, users=cfg.users, narratives=narratives)
        for rater in raters:
            requests = requests_of(rater, people, cfg.draws)
            numbers = estimate(requests, endpoint=rater.endpoint, ledger=rater.ledger, limits=rater.run_limits)
            print(f"rater {rater.name}\n{estimate_table(numbers)}")  # noqa: T201
        return
    artefact = rate(
        raters,
        data=data,
        draws=cfg.draws,
        max_history=HISTORY,
        users=cfg.users,
        max_cost=cfg.max_cost,
        root=Path(cfg.paths.data_dir),
        narratives=narratives,
        force=cfg.force,
        engine=build_engine(cfg),
    )
    ratings = pl.read_parquet(artefact.path / "ratings.parquet", glob=False)
    means = ratings.group_by("rater", "stage", "attribute").agg(
        pl.col("score").mean().round(2), pl.col("confidence").mean().round(2), users=pl.len()
    )
    agreement = pl.read_parquet(artefact.path / "agreement.parquet", glob=False)
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, fmt_str_lengths=60):
        print(means.sort("rater", "stage", "attribute"))  # noqa: T201
        print(agreement.with_columns(pl.selectors.float().round(3)))  # noqa: T201
    print(f"\n{artefact.path}")  # noqa: T201


def _refuse_to_narrate(cfg: DictConfig) -> None:
    """Rating never pays for narratives: those of an endpoint have to be there."""
    from regen.narratives.narrate import OpenAINarrator, estimate, histories_of
    from regen.pipeline import build_narrator, prepared_artefact

    if cfg.run is not None or cfg.narrator.name != "openai":
        return
    narrator = build_narrator(cfg)
    assert isinstance(narrator, OpenAINarrator)
    histories, _ = histories_of(prepared_artefact(cfg), max_history=cfg.narrator.max_history, users=cfg.narrator.users)
    requests = narrator.requests(histories)
    numbers = estimate(requests, endpoint=narrator.endpoint, ledger=narrator.ledger, limits=narrator.run_limits)
    if numbers["already_answered"] == 0:
        raise ValueError(
            f"narrator=openai: none of the {numbers['requests']:,} requests for narratives is answered yet. Run "
            "regen narrate with the same settings first; its dry_run=true tells what it costs."
        )


def written_by(folder: Path) -> "tuple[Artefact, pl.DataFrame]":
    """The data of a finished run, and what its model wrote for the test users.

    Raises:
        ValueError: If the folder holds no finished run.
    """
    from omegaconf import OmegaConf

    from regen.evaluation.prediction_files import read_predictions
    from regen.pipeline import data_artefact

    for name in ("config.yaml", "predictions.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder}: no {name}, so this is no run that wrote narratives. Give a folder of runs_dir."
            )
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    texts = read_predictions(folder / "predictions.jsonl").rename({"prediction": "text"})
    return data_artefact(cfg), texts
