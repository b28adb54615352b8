"""Stage `rate` alone: `python -m regen.rate source=amazon2018 vertical=gift_cards narrator=template rater=[local]`."""

from pathlib import Path

from omegaconf import DictConfig

from regen.cli import main


@main("rate")
def run(cfg: DictConfig) -> None:
    import polars as pl

    from regen.narrate import estimate_table
    from regen.narratives.narrate import estimate
    from regen.narratives.rate import rate, requests_of, subjects
    from regen.pipeline import HISTORY, build_raters, data_artefact

    data = data_artefact(cfg)
    raters = build_raters(cfg)
    if cfg.dry_run:
        people = subjects(data, max_history=HISTORY, users=cfg.users)
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
        force=cfg.force,
    )
    ratings = pl.read_parquet(artefact.path / "ratings.parquet")
    means = ratings.group_by("rater", "stage", "attribute").agg(
        pl.col("score").mean().round(2), pl.col("confidence").mean().round(2), users=pl.len()
    )
    agreement = pl.read_parquet(artefact.path / "agreement.parquet")
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, fmt_str_lengths=60):
        print(means.sort("rater", "stage", "attribute"))  # noqa: T201
        print(agreement.with_columns(pl.selectors.float().round(3)))  # noqa: T201
    print(f"\n{artefact.path}")  # noqa: T201


if __name__ == "__main__":
    run()
