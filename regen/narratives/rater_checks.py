"""Signs that a rater is useless: constant scores, verdicts that follow the order, blindness to a shuffled history."""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

CONTROLS = pl.Schema(
    {
        "user_id": pl.String(),
        "stage": pl.String(),
        "shuffled_user_id": pl.String(),
        "rater": pl.String(),
        "genuine": pl.Int8(),
        "shuffled": pl.Int8(),
    }
)
"""A control pair: the scores of `CONTROLLED` for one narrative, with its user's history and with another user's."""
CONTROLLED = "veracity"  # the attribute that has to notice another user's history
LARGEST_P = 0.05
LARGEST_SHARE = 0.5  # of constant attributes, and of pairs that the order decides
FEWEST = 5  # of fewer pairs even the best result, 0.5**4, is above LARGEST_P
REMEDY = "Use a larger or another model (rater.NAME.model=)."


def told_apart(controls: pl.DataFrame) -> pl.DataFrame:
    """How often each rater scores the genuine history above the shuffled one, with a one-sided sign test.

    Args:
        controls: Rows of `CONTROLS`.

    Returns:
        One row per rater: `pairs`, the numbers of pairs in which the genuine history scores `higher`, `equal` and
        `lower`, the means of both scores, and `p`. Equal pairs do not count in the test.
    """
    better, worse = pl.col("genuine") > pl.col("shuffled"), pl.col("genuine") < pl.col("shuffled")
    counted = controls.group_by("rater").agg(
        pairs=pl.len(),
        higher=better.sum(),
        equal=(~better & ~worse).sum(),
        lower=worse.sum(),
        genuine=pl.col("genuine").mean(),
        shuffled=pl.col("shuffled").mean(),
    )
    p = [sign_test(higher, lower) for higher, lower in counted.select("higher", "lower").iter_rows()]
    return counted.with_columns(p=pl.Series(p, dtype=pl.Float64)).sort("rater")


def sign_test(higher: int, lower: int) -> float:
    """Probability of at least `higher` heads in `higher + lower` tosses of a fair coin."""
    tosses = higher + lower
    return sum(math.comb(tosses, heads) for heads in range(higher, tosses + 1)) / 2**tosses


def rating_cautions(ratings: pl.DataFrame, controls: pl.DataFrame) -> list[str]:
    """A warning for each rater whose scores are mostly constant, or that does not tell the control pairs apart.

    A single constant attribute is no sign: true texts all deserve the same veracity.

    Args:
        ratings: Columns `rater`, `stage`, `attribute` and `score`.
        controls: Rows of `CONTROLS`.
    """
    judged = ratings.group_by("rater", "stage", "attribute").agg(
        pl.col("score").first(), values=pl.col("score").n_unique(), users=pl.len()
    )
    judged = judged.filter(pl.col("users") >= FEWEST).sort("rater", "stage", "attribute")
    found = []
    for (rater,), part in judged.group_by(["rater"], maintain_order=True):
        constant = part.filter(pl.col("values") == 1)
        if constant.height > LARGEST_SHARE * part.height:
            stage, attribute, score, users = constant.select("stage", "attribute", "score", "users").row(0)
            found.append(
                f"{rater}: {constant.height} of {part.height} attributes have one score for all users, for instance "
                f"{score} of 7 for {stage} {attribute} of {users:,} users; the limit is {LARGEST_SHARE:.0%}. Such "
                f"scores do not tell texts apart. {REMEDY}"
            )
    for row in told_apart(controls).iter_rows(named=True):
        if row["pairs"] < FEWEST:
            found.append(
                f"{row['rater']}: {row['pairs']} control pairs cannot show whether this rater reads the history; "
                f"{FEWEST} is the least. Rate more users."
            )
        elif row["p"] > LARGEST_P:
            found.append(
                f"{row['rater']}: {CONTROLLED} is higher for the genuine history than for another user's in "
                f"{row['higher']} of {row['pairs']} control pairs, and lower in {row['lower']} (sign test: "
                f"p = {row['p']:.2g}, the limit is {LARGEST_P}). This rater does not read the history, or the texts "
                f"are true of everybody. {REMEDY}"
            )
    return found


def pair_cautions(found: Mapping[str, Any]) -> list[str]:
    """A warning for each feature and rater of a `side_by_side.summary` that decided by the order, or not at all."""
    cautions = []
    for row in found["features"]:
        if row["order_dependent"] > LARGEST_SHARE:
            cautions.append(
                f"{row['rater']}: the order of the texts decided {row['order_dependent']:.0%} of the {row['feature']} "
                f"pairs, so this win rate says little about the texts. {REMEDY}"
            )
        elif row["tie_in_both_orders"] == 1.0 and row["pairs"] >= FEWEST:
            cautions.append(
                f"{row['rater']}: all {row['pairs']:,} {row['feature']} pairs are ties. If the texts differ, this "
                f"rater does not compare them. {REMEDY}"
            )
    return cautions
