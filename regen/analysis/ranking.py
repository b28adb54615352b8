"""Analysis of recommenders: recall by k, recall by popularity of the item, and examples of single users."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from regen.analysis.figures import PALETTE
from regen.analysis.popularity import BUCKETS, POPULARITY_EDGES
from regen.config.objects import read_run_config
from regen.data.splits import split_of
from regen.data.tables import Tables
from regen.evaluation.comparison_blocks import CLOSED_FORM
from regen.evaluation.evaluate import PREDICTIONS

DEEPEST = 100  # largest k of the curves
SHOWN = 3  # recommended items per user in the examples
LINES = ("-", "--", "-.", ":")


def ranked_runs(runs: Path) -> dict[str, Path]:
    """The folders of the scored runs that rank items, by encoder and seed.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = {}
    for path in sorted(runs.glob(f"*/{PREDICTIONS}")):
        config = read_run_config(path.parent)
        if config.task.ranks:
            found[f"{config.encoder.name}, seed {config.seed}"] = path.parent
    if not found:
        raise FileNotFoundError(f"{runs}: no scored run that ranks items. Train one: train.py task=recommend")
    return found


def recall_curves(runs: Mapping[str, Path]) -> Figure:
    """Recall@k for k up to 100 of each run, and of the closed form of the last run.

    Args:
        runs: From `ranked_runs`.
    """
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    depths = np.arange(1, DEEPEST + 1)
    ranks = {name: pl.read_ndjson(folder / PREDICTIONS) for name, folder in runs.items()}
    curves = {name: of["rank"].to_numpy() for name, of in ranks.items()}
    last = list(ranks)[-1]
    curves[f"{CLOSED_FORM} ({last})"] = ranks[last]["closed_form_rank"].to_numpy()
    for at, (name, of) in enumerate(curves.items()):
        recall = [(of <= depth).mean() for depth in depths]
        axis.plot(depths, recall, LINES[at % len(LINES)], color=PALETTE[at % len(PALETTE)], label=name)
    axis.set(xscale="log", xlabel="k (items shown)", ylabel="Recall@k (users)", ylim=(0, None), xlim=(1, DEEPEST))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def recall_by_popularity(run: Path, tables: Tables) -> pl.DataFrame:
    """Recall@10 by the number of training users who bought the item.

    Args:
        run: Folder of a scored run.
        tables: The prepared data that it was trained on.

    Returns:
        One row per nonempty bucket: `training users`, `test users`, `recall`, `closed form`.
    """
    bought = tables.interactions.select("user_id", "item_id").unique()
    trained = bought.filter(split_of(bought["user_id"], read_run_config(run).split) == "train")
    counts = trained.group_by("item_id").agg(users=pl.len())
    ranked = pl.read_ndjson(run / PREDICTIONS).join(counts, on="item_id", how="left")
    buckets = np.digitize(ranked["users"].fill_null(0).to_numpy(), POPULARITY_EDGES)
    order = {"training users": pl.Series(buckets).replace_strict(range(len(BUCKETS)), BUCKETS)}
    return (
        ranked.with_columns(order=pl.Series(buckets), **order)
        .group_by("order", "training users")
        .agg(
            pl.len().alias("test users"),
            (pl.col("rank") <= 10).mean().alias("recall"),
            (pl.col("closed_form_rank") <= 10).mean().alias(CLOSED_FORM),
        )
        .sort("order")
        .drop("order")
    )


def examples(run: Path, tables: Tables, *, users: int = 5) -> pl.DataFrame:
    """Purchases and recommendations of single test users, and the narratives about the latter if the run wrote any.

    Args:
        run: Folder of a scored run.
        tables: The prepared data that it was trained on.
        users: Number of users, from the start of the test split.
    """
    title_of = dict(tables.items.select("item_id", "title").iter_rows())
    rows = pl.read_ndjson(run / PREDICTIONS).head(users)
    bought = tables.interactions.filter(pl.col("user_id").is_in(rows["user_id"].to_list()))
    titles = {
        user: [title_of[item] for item in items]
        for user, items in bought.group_by("user_id").agg("item_id").iter_rows()
    }
    found = {
        "bought before": ["; ".join(filter(None, titles[user][-4:-1])) for user in rows["user_id"]],
        "bought next": [title_of[item] for item in rows["item_id"]],
        "rank": rows["rank"],
        "recommended": ["; ".join(title_of[one] or one for one in items[:SHOWN]) for items in rows["recommended"]],
    }
    if "recommended_prediction" in rows.columns:
        found["about the first one"] = rows["recommended_prediction"]
    return pl.DataFrame(found)
