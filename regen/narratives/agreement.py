"""Scores from the draws of a rater, and the agreement of draws and raters (paper 3.3)."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from statistics import multimode

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
    """The value of more than half of the draws, else their mean rounded down (paper 3.3)."""
    value, count = Counter(draws).most_common(1)[0]
    return value if 2 * count > len(draws) else math.floor(sum(draws) / len(draws))


def stage_confidence(draws: Sequence[Sequence[int]]) -> float:
    """Mean over attributes of the most frequent confidence, the lowest one of ties (paper 3.3)."""
    modes = [min(multimode(of)) for of in draws]
    return sum(modes) / len(modes)


def agreement(ratings: pl.DataFrame) -> pl.DataFrame:
    """Krippendorff's alpha (ordinal) and exact agreement, between raters and between the draws of each rater.

    Alpha is null if no user has two judgements, or if all judgements are the same.
    """
    rows = []
    for (stage, attribute), part in ratings.group_by(["stage", "attribute"], maintain_order=True):
        names = part["rater"].unique().sort().to_list()
        for name in names:
            draws = part.filter(pl.col("rater") == name)["draws"].to_list()
            table = np.array(list(zip_longest(*draws, fillvalue=np.nan)), dtype=np.float64).T
            rows.append((f"draws of {name}", stage, attribute, *agreement_of(table)))
        if len(names) > 1:
            wide = part.pivot(on="rater", index="user_id", values="score").select(names)
            table = wide.cast(pl.Float64).to_numpy()
            rows.append((" and ".join(names), stage, attribute, *agreement_of(table)))
    return pl.DataFrame(rows, schema=AGREEMENT, orient="row").sort("between", "stage", "attribute")


def agreement_of(table: np.ndarray) -> tuple[int, float | None, float | None]:
    """Number of units with two or more judgements, Krippendorff's alpha (ordinal), and share of exact agreement.

    Args:
        table: Judgements `units judges`, NaN if missing.
    """
    judged = table[(~np.isnan(table)).sum(axis=1) >= 2]
    alpha = None
    if len(np.unique(judged[~np.isnan(judged)])) > 1:
        alpha = float(krippendorff.alpha(judged.T, level_of_measurement="ordinal"))
    same = [len(np.unique(row[~np.isnan(row)])) == 1 for row in judged]
    return len(judged), alpha, float(np.mean(same)) if same else None
