"""`regen side_by_side a=outputs/runs/A b=outputs/runs/B rater=[local]`: lets language models compare two runs."""

from pathlib import Path

from regen.config.command_line import main
from regen.config.schema import SideBySideConfig


@main("side_by_side")
def run(config: SideBySideConfig) -> None:
    import json

    import polars as pl

    from regen.commands.rate import written_by
    from regen.narratives.choices import build_raters
    from regen.narratives.rater_checks import pair_cautions
    from regen.narratives.side_by_side import Pair, compare_side_by_side
    from regen.narratives.subjects import subjects
    from regen.pipeline import HISTORY

    (data, a), (other, b) = written_by(Path(config.a)), written_by(Path(config.b))
    if data.fingerprint != other.fingerprint:
        raise ValueError(
            f"a is on the data {data.path.name} and b on {other.path.name}; compare runs on the same data."
        )
    both = a.join(b, on=["user_id", "feature", "item_id"], how="inner", suffix="_b", nulls_equal=True)
    people = subjects(data, max_history=HISTORY, users=config.users, narratives=both)
    histories = {subject.history.user_id: subject.history for subject in people}
    pairs = [
        Pair(history, feature, one, two)
        for user, feature, item, one, two in both.select("user_id", "feature", "item_id", "text", "text_b").iter_rows()
        if user in histories
        and (history := histories[user] if item is None else histories[user].ending_with(item)) is not None
    ]
    artefact = compare_side_by_side(
        pairs,
        build_raters(config.rater, max_cost=config.max_cost),
        max_cost=config.max_cost,
        root=Path(config.paths.data_dir),
        force=config.force,
        engine=config.engine.build(),
    )
    summary = json.loads((artefact.path / "summary.json").read_text())
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        for part in summary.values():
            if part:
                print(pl.DataFrame(part).with_columns(pl.selectors.float().round(3)))  # noqa: T201
    print("\n".join([*pair_cautions(summary), "", str(artefact.path)]))  # noqa: T201
