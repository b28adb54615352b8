"""Slices: where a model earns its scores, by length of history, popularity of items, and whether they were seen.

A model that has memorised items scores on popular and seen ones and falls on the rest; one that reads a history gains
with its length. Floors (shuffled, constant) stand in the same slices, because they vary between slices as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from regen.data.histories import Example
from regen.evaluation.estimate_tables import ESTIMATES, estimate_table
from regen.evaluation.text_metrics import KEYS, metrics_for

ATTRIBUTES = {
    "history_length": "Interactions in the history",
    "final_item_popularity": "Purchases of the final item by training users",
    "mean_item_popularity": "Purchases of an item by training users, mean over the history",
    "items_seen": "Items of the history that a training user bought",
}
_OCCURRENCE = "occurrence"  # tells two narratives about the same item apart
_NOT_OF_A_SLICE = ("distinct",)  # counts equal texts over all examples


def example_attributes(
    examples: Sequence[Example], interactions: pl.DataFrame, of_training_user: pl.Series
) -> pl.DataFrame:
    """What a slice may be cut by.

    Args:
        examples: test narratives with their histories.
        interactions: column `item_id`, in the order that the histories' rows refer to.
        of_training_user: whether each interaction is a training user's (booleans).

    Returns:
        `user_id, feature, item_id` and the columns of `ATTRIBUTES`, a row per example in the given order; `items_seen`
        is `all`, `some` or `none`.
    """
    bought = pl.DataFrame({"item_id": interactions["item_id"], "trained": of_training_user.cast(pl.Int64)})
    popularity = bought.select(pl.col("trained").sum().over("item_id"))["trained"].to_numpy()
    of_history = [popularity[example.rows] for example in examples]
    return pl.DataFrame(
        {
            "user_id": [example.user_id for example in examples],
            "feature": [example.feature for example in examples],
            "item_id": pl.Series([example.item_id for example in examples], dtype=pl.String),
            "history_length": [len(row) for row in of_history],
            "final_item_popularity": [int(row[-1]) for row in of_history],
            "mean_item_popularity": [float(row.mean()) for row in of_history],
            "items_seen": ["all" if row.all() else "some" if row.any() else "none" for row in of_history],
        },
        schema_overrides={"user_id": pl.String, "feature": pl.String, "items_seen": pl.String},
    )


def slice_scores(
    examples: pl.DataFrame, attributes: pl.DataFrame, *, buckets: int = 4, resamples: int = 2000, seed: int = 0
) -> pl.DataFrame:
    """Scores of every system in every bucket of every attribute.

    Numbers are cut at their quantiles, so that buckets hold about as many examples each; equal numbers stay together,
    which makes fewer or uneven buckets where many are equal. Texts are buckets of their own.

    Args:
        examples: a run's `examples.parquet`: `system, user_id, feature, item_id` and statistics.
        attributes: `user_id, feature, item_id` and attributes, a row per example as in `example_attributes`.
        buckets: at most this many per attribute.
        resamples: bootstrap resamples of a bucket's users.
        seed: of the bootstrap.

    Returns:
        `feature, attribute, bucket, system` and the columns of `ESTIMATES`. A metric that counts equal texts
        (`distinct`) is left out.

    Raises:
        ValueError: when the attributes lack an example, or `buckets` is below 1.
    """
    if buckets < 1:
        raise ValueError(f"buckets={buckets}; at least 1 is needed.")
    keys = [*KEYS, _OCCURRENCE]
    rows = _numbered(examples, "system", *KEYS)
    known = _numbered(attributes, *KEYS)
    names = [name for name in attributes.columns if name not in KEYS]
    joined = rows.join(
        known.with_columns(pl.lit(True).alias("known")), on=keys, how="left", nulls_equal=True, maintain_order="left"
    )
    if lacking := joined["known"].null_count():
        user = joined.filter(pl.col("known").is_null())["user_id"][0]
        raise ValueError(
            f"{lacking:,} of {joined.height:,} scored rows have no attributes; the first is user {user!r}'s. Take both "
            "from the same run."
        )
    metrics = [metric for name, metric in metrics_for(examples.columns).items() if name not in _NOT_OF_A_SLICE]
    parts = []
    for (feature,), of_feature in joined.group_by(["feature"], maintain_order=True):
        own = known.filter(pl.col("feature") == feature)
        for name in names:
            place, labels = _buckets(own[name], of_feature[name], buckets)
            cut = of_feature.with_columns(pl.lit(name).alias("attribute"), pl.Series("place", place)).sort("place")
            cut = cut.with_columns(pl.col("place").replace_strict(labels, return_dtype=pl.String).alias("bucket"))
            by = ["feature", "attribute", "bucket", "system"]
            parts.append(estimate_table(cut, metrics, by=by, resamples=resamples, seed=seed))
    kinds = pl.Schema(dict.fromkeys(("feature", "attribute", "bucket", "system"), pl.String()))
    return pl.concat([pl.DataFrame(schema={**kinds, **ESTIMATES}), *parts])


def _numbered(frame: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """Adds which one of its equals a row is, by the order of rows."""
    return frame.with_columns(pl.int_range(pl.len()).over(*keys).alias(_OCCURRENCE))


def _buckets(values: pl.Series, asked: pl.Series, count: int) -> tuple[Int[np.ndarray, " asked"], dict[int, str]]:
    """Bucket of each value asked for, and what each bucket is called.

    Args:
        values: of every example, which the cuts are made from.
        asked: of the scored rows, all among `values`.
        count: of buckets.
    """
    if values.dtype == pl.String:
        places = {value: place for place, value in enumerate(sorted(values.unique()))}
        return np.array([places[value] for value in asked], dtype=np.int64), {at: name for name, at in places.items()}
    numbers = values.to_numpy().astype(np.float64)
    edges = np.unique(np.quantile(numbers, np.arange(1, count) / count, method="inverted_cdf"))
    place_of_value = np.searchsorted(edges, numbers)
    labels = {}
    for place in np.unique(place_of_value).tolist():
        labels[place] = _range(numbers[place_of_value == place])
    return np.searchsorted(edges, asked.to_numpy().astype(np.float64)), labels


def _range(numbers: Float[np.ndarray, " members"]) -> str:
    decimals = 0 if (numbers == numbers.round()).all() else 1
    low, high = (f"{bound:,.{decimals}f}" for bound in (numbers.min(), numbers.max()))
    return low if low == high else f"{low} to {high}"
