"""From a rater's draws to a score, and how far draws and raters agree (paper 3.3)."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import krippendorff
import numpy as np
import polars as pl

AGREEMENT = pl.Schema(
    {
        "between": pl.String(),
        "stage": pl.String(),
        "attribute": pl.String(),
        "units": pl.Int64(),
        "krippendorff_alpha": pl.Float64(),
        "exact_agreement": pl.Float64(),
    }
)


def final_score(draws: Sequence[int]) -> int:
    """What more than half of the draws agree on, else their mean rounded down (paper 3.3)."""
    value, count = Counter(draws).most_common(1)[0]
    return value if 2 * count > len(draws) else math.floor(sum(draws) / len(draws))


def stage_confidence(draws: Sequence[Sequence[int]]) -> float:
    """The most frequent confidence of each attribute, averaged over attributes (paper 3.3); of several the lowest."""
    modes = [min(value for value, count in Counter(of).items() if count == max(Counter(of).values())) for of in draws]
    return sum(modes) / len(modes)


def agreement(ratings: pl.DataFrame) -> pl.DataFrame:
    """Krippendorff's alpha (ordinal) and the share of exact agreement: between raters, and between one rater's draws.

    Alpha is null where fewer than two judgements of a user exist or all judgements are the same.
    """
    rows: list[dict[str, Any]] = []
    for (stage, attribute), part in ratings.group_by(["stage", "attribute"], maintain_order=True):
        names = part["rater"].unique().sort().to_list()
        for name in names:
            draws = part.filter(pl.col("rater") == name)["draws"].to_list()
            rows.append(_agreement(f"draws of {name}", str(stage), str(attribute), _padded(draws)))
        if len(names) > 1:
            wide = part.pivot(on="rater", index="user_id", values="score").select(names)
            table = wide.cast(pl.Float64).to_numpy()
            rows.append(_agreement(" and ".join(names), str(stage), str(attribute), table))
    return pl.DataFrame(rows, schema=AGREEMENT, orient="row").sort("between", "stage", "attribute")


def _agreement(between: str, stage: str, attribute: str, table: np.ndarray) -> dict[str, Any]:
    alpha, exact, units = agreement_of(table)
    return {
        "between": between,
        "stage": stage,
        "attribute": attribute,
        "units": units,
        "krippendorff_alpha": alpha,
        "exact_agreement": exact,
    }


def agreement_of(table: np.ndarray) -> tuple[float | None, float | None, int]:
    """Krippendorff's alpha (ordinal), the share of units on which all agree, and how many units two or more judged.

    Args:
        table: Judgements `units judges`, NaN where there is none.
    """
    judged = table[(~np.isnan(table)).sum(axis=1) >= 2]
    alpha = None
    if len(np.unique(judged[~np.isnan(judged)])) > 1:
        alpha = float(krippendorff.alpha(judged.T, level_of_measurement="ordinal"))
    same = [len(np.unique(row[~np.isnan(row)])) == 1 for row in judged]
    return alpha, float(np.mean(same)) if same else None, len(judged)


def _padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    return table
