"""One table over run folders (paper, Table 1): any swept setting, pooled seeds, paired differences, floors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from regen.evaluation.comparison_blocks import Block, Column
from regen.evaluation.comparison_builder import BlockBuilder, Contrast
from regen.evaluation.comparison_cells import ENCODER, Cell, Run, grouped, load, varying_settings
from regen.evaluation.comparison_table import Comparison
from regen.evaluation.scoring import EXAMPLES
from regen.evaluation.statistics import Bootstrap, Estimate, holm

__all__ = ["ENCODERS", "Cell", "Columns", "Comparison", "compare", "compare_runs", "compared_key"]

ENCODERS = ("cf", "content", "both", "text", "none", "random", "noise")
"""The order of columns; other encoders follow in alphabetical order."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table, and which of them are compared.

    Attributes:
        key: the setting whose values are the columns. None selects the encoder or, if all cells have the same encoder,
            the first setting that varies.
        reference: the value that the others are compared with. None selects the first value; among encoders, it
            compares the encoder that joins the parts of others with these others.
    """

    key: str | None = None
    reference: str | None = None


def compare(cells: Sequence[Cell], *, columns: Columns = Columns(), resamples: int = 2000, seed: int = 0) -> Comparison:
    """Compares the cells of a grid, in one block per feature and combination of the other settings that vary.

    Cells that failed, have no predictions yet or cannot be read are listed as problems.

    Args:
        cells: runs of one or more grids; runs that differ only by seed are pooled.
        columns: the setting whose values are the columns, and the reference.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: without a cell, when the cells lack what `columns` names, or when two scored cells have the same
            settings and seed.
    """
    if not cells:
        raise ValueError("there is no run to compare: 0 cells. Give a folder that contains run folders.")
    return compare_runs([load(cell) for cell in cells], columns=columns, resamples=resamples, seed=seed)


def compare_runs(
    runs: Sequence[Run], *, columns: Columns = Columns(), resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compares runs that are in memory; see `compare`."""
    cells = [run.cell for run in runs]
    key = compared_key(cells, columns.key)
    values = _in_order(key, list(dict.fromkeys(cell.value(key) for cell in cells)))
    contrast = _contrast(cells, key, values, columns.reference)
    varying = varying_settings(cells)
    beside = [name for name in varying if name != key]
    bootstrap_of = cache(partial(Bootstrap, resamples=resamples, seed=seed))  # the same users share their draws
    blocks = [
        BlockBuilder(feature, members, bootstrap_of, key, values, contrast).build(dict(settings))
        for (feature, settings), members in grouped(runs, beside).items()
    ]
    problems = []
    for run in runs:
        if run.examples is None:
            reason = run.error or f"no {EXAMPLES} in {run.cell.folder} yet"
            problems.append(f"{run.cell.identity(varying)}: {run.status}: {reason}")
    return Comparison(*_corrected(blocks), problems, resamples, key)


def compared_key(cells: Sequence[Cell], key: str | None = None) -> str:
    """The setting whose values are the columns; see `Columns.key`.

    Raises:
        ValueError: If the cells do not differ in this setting; the message lists those that vary.
    """
    varying = varying_settings(cells)
    if key is None:
        return ENCODER if ENCODER in varying or not varying else varying[0]
    if key not in varying and key != ENCODER:
        differ = ", ".join(varying) or "nothing"
        raise ValueError(f"columns={key}: all runs have the same value. They differ in {differ}.")
    return key


def _in_order(key: str, values: list[str]) -> list[str]:
    """Sorts encoders in the paper's order and numbers by size; keeps the order of other values."""
    if key == ENCODER:
        return [name for name in ENCODERS if name in values] + sorted(set(values) - set(ENCODERS))
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


def _contrast(cells: Sequence[Cell], key: str, values: Sequence[str], reference: str | None) -> Contrast:
    if reference is not None and reference not in values:
        raise ValueError(f"reference={reference} is none of the columns: {', '.join(values)}.")
    if key != ENCODER or reference is not None:
        first = reference or values[0]
        return Contrast([(value, first) for value in values if value != first], None, first)
    parts = {cell.encoder: frozenset(cell.parts) for cell in cells}
    below = {name: [other for other in values if parts[other] and parts[other] < parts[name]] for name in values}
    joint = max(values, key=lambda name: (len(below[name]), len(parts[name])))
    if not below[joint]:
        return Contrast([], None, values[0])
    whole = len(below[joint]) > 1 and frozenset.union(*(parts[name] for name in below[joint])) == parts[joint]
    return Contrast([(joint, other) for other in below[joint]], joint if whole else None, joint)


def _corrected(blocks: Sequence[Block]) -> tuple[list[Block], int]:
    """The blocks with Holm-corrected p-values, and the number of differences that the table shows.

    The column of the better encoder repeats estimates of another column, so these count once.
    """
    shown = {
        id(estimate): estimate
        for block in blocks
        for column in block.columns
        if column.kind == "difference"
        for metric in block.rows
        if isinstance(estimate := column.estimate(metric), Estimate) and not math.isnan(estimate.p)
    }
    adjusted = dict(zip(shown, holm([estimate.p for estimate in shown.values()]), strict=True))

    def corrected(column: Column) -> Column:
        if isinstance(column.content, str):
            return column
        estimates = {
            name: replace(estimate, p_holm=adjusted.get(id(estimate), math.nan))
            for name, estimate in column.content.items()
        }
        return replace(column, content=estimates)

    return [replace(block, columns=[corrected(column) for column in block.columns]) for block in blocks], len(shown)
