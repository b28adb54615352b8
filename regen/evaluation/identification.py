"""Identification: is a text nearer to its own reference than to the references of other users?

A generic text scores at chance, however fluent it is, and no planted label is needed. The candidates are the own
reference and those of k - 1 other users. Nothing is sampled: each value is the expectation over *all* sets of k users.
So the candidates are the same for every model, and a text that is the same for everyone scores exactly 1/k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from regen.evaluation.similarity import Vectors

CANDIDATES = (10, 50)  # k of Identification@k
RECIPROCAL, ALL = "reciprocal_rank", "all"
OF_USER, OF_ITEM = "identified", "identified_item"
"""Column prefixes: the own reference among those of other users, and of other items of the same category."""
CATEGORY = "category"  # optional column of predictions: the category of the item that the text is about
_DECIMALS = 5  # similarities are rounded: further digits depend on how the float32 encoder batches texts
_BLOCK = 1024  # texts compared with all references at a time


def chance(kind: int | str, candidates: int) -> float:
    """The score of a constant text among this many candidates: 1/k, or the mean reciprocal rank of a random order."""
    if kind == RECIPROCAL:
        return sum(1 / rank for rank in range(1, candidates + 1)) / candidates
    return 1 / (candidates if kind == ALL else int(kind))


def identification_columns(
    predictions: pl.DataFrame, candidates: pl.DataFrame, vectors: Vectors
) -> dict[str, Float[np.ndarray, " rows"]]:
    """Per-example statistics of Identification@k and of the reciprocal rank.

    Users are compared within a feature. If predictions name an item and its category, items are compared too, within
    a feature and category. A k above the number of users has no column.

    Args:
        predictions: columns `user_id, feature, item_id, prediction, reference`, optionally `category`.
        candidates: the same columns; their references are the candidates and include those of `predictions`.
        vectors: unit-norm embedding of each text; a blank text has zero, which puts it at chance.

    Returns:
        For `identified` (users) and `identified_item` (items): `<stem>_10`, `<stem>_50`, `<stem>_all`,
        `<stem>_reciprocal_rank`, and for each of them `<column>_of`, 1 where the example counts.
    """
    columns = _ranked(predictions, candidates, vectors, stem=OF_USER, unit="user_id", pool=["feature"])
    if CATEGORY in predictions.columns:
        pool = ["feature", CATEGORY]
        columns |= _ranked(predictions, candidates, vectors, stem=OF_ITEM, unit="item_id", pool=pool)
    return columns


def _ranked(
    predictions: pl.DataFrame,
    candidates: pl.DataFrame,
    vectors: Vectors,
    *,
    stem: str,
    unit: str,
    pool: list[str],
) -> dict[str, Float[np.ndarray, " rows"]]:
    """Statistics of one kind of unit (users or items): the t-th text of a unit against the t-th of every other unit.

    A unit with fewer texts repeats them, as in the shuffled floor. So each comparison has one text per unit.
    """
    kinds = (*CANDIDATES, ALL, RECIPROCAL)
    columns = {f"{stem}_{kind}{end}": np.zeros(predictions.height) for kind in kinds for end in ("", "_of")}
    asked = predictions.with_row_index("row").drop_nulls([unit, *pool])
    known = {
        key: dict(rows.group_by(unit, maintain_order=True).agg("reference").iter_rows())
        for key, rows in candidates.drop_nulls([unit, *pool]).group_by(pool)
    }
    for key, rows in asked.group_by(pool, maintain_order=True):
        references = known[key]
        if len(references) < 2:
            continue
        place = {name: at for at, name in enumerate(references)}
        turned = rows.with_columns(turn=pl.int_range(pl.len()).over(unit))
        for (turn,), same in turned.group_by("turn"):
            of_turn = [texts[turn % len(texts)] for texts in references.values()]
            for name, values in _values(same, of_turn, [place[name] for name in same[unit]], vectors).items():
                columns[f"{stem}_{name}"][same["row"]] = values
                columns[f"{stem}_{name}_of"][same["row"]] = 1.0
    return {name: values for name, values in columns.items() if columns[f"{name.removesuffix('_of')}_of"].any()}


def _values(
    rows: pl.DataFrame, references: Sequence[str], own: Sequence[int], vectors: Vectors
) -> dict[int | str, Float[np.ndarray, " rows"]]:
    """The expected statistics, with ties broken at random; arguments as for `_places`."""
    size = len(references)
    nearer, tied = _places(rows, references, own, vectors)
    ranks = np.arange(1, size + 1)
    gains: dict[int | str, Float[np.ndarray, " size"]] = {k: _wins(k, size) for k in CANDIDATES if k <= size}
    gains |= {ALL: (ranks == 1).astype(np.float64), RECIPROCAL: 1 / ranks}
    totals = {kind: np.concatenate([[0.0], np.cumsum(gain)]) for kind, gain in gains.items()}
    return {kind: (total[nearer + tied] - total[nearer]) / tied for kind, total in totals.items()}


def _wins(k: int, size: int) -> Float[np.ndarray, " size"]:
    """For each rank among all `size` candidates: the share of sets of k with the own reference in which it is first.

    This is C(size - rank, k - 1) / C(size - 1, k - 1), computed from the rank before.
    """
    ranks = np.arange(1, size)
    return np.cumprod(np.concatenate([[1.0], np.maximum(size - ranks - k + 1, 0) / (size - ranks)]))


def _places(
    rows: pl.DataFrame, references: Sequence[str], own: Sequence[int], vectors: Vectors
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """How many references are nearer to a text than its own reference, and how many are equally near (own included).

    Equal texts are compared once, so that they tie exactly.

    Args:
        rows: columns `prediction` and `reference`.
        references: one text per unit.
        own: index of each row's unit in `references`; the row's own reference replaces the text there.
        vectors: embedding of each text.
    """
    said, of_row = np.unique(rows["prediction"].to_numpy(), return_inverse=True)
    told, of_reference = np.unique([*rows["reference"], *references], return_inverse=True)
    of_own, of_others = of_reference[: len(rows)], of_reference[len(rows) :]
    matrix = np.stack([vectors[text] for text in told]).T
    nearer, tied = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(said), _BLOCK):
        block = np.stack([vectors[text] for text in said[start : start + _BLOCK]])
        similarity = np.round(block @ matrix, _DECIMALS)
        for row in np.flatnonzero((of_row >= start) & (of_row < start + _BLOCK)).tolist():
            of_text = similarity[of_row[row] - start]
            compared = of_text[of_others]
            compared[own[row]] = of_text[of_own[row]]
            nearer[row] = (compared > compared[own[row]]).sum()
            tied[row] = (compared == compared[own[row]]).sum()
    return nearer, tied
