"""Joins another system's texts with the test narratives of runs, so that one table compares them on the same pairs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from regen.data.grounding import brand_names, history_texts
from regen.evaluation.evaluate import PREDICTIONS
from regen.evaluation.prediction_files import read_predictions
from regen.evaluation.run_data import RunData, read_run_data
from regen.evaluation.text_metrics import KEYS

_SCHEMA = pl.Schema(dict.fromkeys([*KEYS, "reference"], pl.String()))


@dataclass(frozen=True)
class BesideRuns:
    """Another system's texts for the test narratives of runs.

    Attributes:
        predictions: Columns for `score_examples`. `category` and `history` are among them if the data of the runs are
            on this machine.
        brands: Brands of these data.
        note: A sentence for the caption: what was joined, and what the runs were trained on.
    """

    predictions: pl.DataFrame
    brands: Collection[str]
    note: str


def join_with_runs(path: Path, runs: Sequence[Path]) -> BesideRuns:
    """Keeps the lines of a file that belong to test narratives of the runs; see `joined`.

    Args:
        path: A file for `read_predictions`.
        runs: Run folders. Those without predictions are left out.

    Raises:
        ValueError: If no run has predictions, or no line belongs to their test narratives.
    """
    evaluated = [folder for folder in runs if (folder / PREDICTIONS).is_file()]
    if not evaluated:
        raise ValueError(f"predictions={path}: none of these runs has texts yet. Evaluate them first.")
    theirs = read_predictions(path, named=False)
    told, brands, trained = _test_narratives(evaluated)
    found, by = joined(theirs, told)
    which = " and ".join(name.removesuffix("_id") for name in by)
    if found.is_empty():
        raise ValueError(
            f"predictions={path}: 0 of its {theirs.height:,} lines have the {which} of one of the {told.height:,} test "
            "narratives of these runs. Their predictions.jsonl has these references; copy them unchanged."
        )
    note = (
        f"{found.height:,} of its {theirs.height:,} texts belong to the {told.height:,} test narratives of these runs, "
        f"joined by {which}."
    )
    return BesideRuns(found, brands, f"{note} {trained}".strip())


def joined(theirs: pl.DataFrame, told: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The texts whose reference is that of a test narrative, spaces around it aside.

    If the lines have a `user_id` or a `feature`, these have to agree too. Otherwise a reference that belongs to several
    users or features is left out. Equal references of one user are joined in their order.

    Args:
        theirs: From `read_predictions` with `named=False`.
        told: Test narratives: `user_id, feature, item_id, reference` and any others.

    Returns:
        The columns of `told` and `prediction`, in the order of `told`; and the names of what was joined by.
    """
    given = [name for name in ("user_id", "feature") if not theirs[name].null_count()]
    by = ["said", *given]
    said, place = pl.col("reference").str.strip_chars().alias("said"), pl.int_range(pl.len()).over(by).alias("place")
    known = told.with_columns(said).filter(pl.struct("user_id", "feature").n_unique().over(by) == 1)
    texts = theirs.select(*given, said, "prediction").with_columns(place)
    found = known.with_columns(place).join(texts, on=[*by, "place"], maintain_order="left")
    return found.drop("said", "place"), ["reference", *given]


def _test_narratives(runs: Sequence[Path]) -> tuple[pl.DataFrame, set[str], str]:
    """Every test narrative once, the brands of the data, and a sentence on the training narratives."""
    parts: list[pl.DataFrame] = []
    brands: set[str] = set()
    sizes: set[int] = set()
    known = pl.DataFrame(schema=_SCHEMA)
    for folder in runs:
        rows = read_predictions(folder / PREDICTIONS).select(_SCHEMA.names())
        new = rows.join(known, on=_SCHEMA.names(), how="anti", nulls_equal=True, maintain_order="left")
        known = pl.concat([known, new])
        if not new.is_empty() and (data := read_run_data(folder)) is not None:
            brands |= brand_names(data.tables.items)
            sizes.add(data.training)
            new = _with_histories(new, data)
        parts.append(new)
    told = pl.concat(parts, how="diagonal")
    if "history" in told.columns and told["history"].null_count():
        told = told.drop("history")  # the statistic needs all of them
    if not sizes:
        return told, brands, ""
    trained = " or ".join(f"{size:,}" for size in sorted(sizes))
    return told, brands, f"These runs have {trained} training narratives; the other system has its own."


def _with_histories(rows: pl.DataFrame, data: RunData) -> pl.DataFrame:
    """Adds the columns `category` and `history` to test narratives."""
    keys = [(one.user_id, one.feature, one.item_id, one.text) for one in data.tests]
    histories = pl.DataFrame(keys, schema=_SCHEMA, orient="row").with_columns(
        history=pl.Series(history_texts(data.tables, [one.rows for one in data.tests]), dtype=pl.String)
    )
    found = histories.unique(_SCHEMA.names(), keep="first")
    told = rows.join(found, on=_SCHEMA.names(), how="left", nulls_equal=True, maintain_order="left")
    of_item = data.tables.items.select("item_id", "category")
    return told.join(of_item, on="item_id", how="left", maintain_order="left")
