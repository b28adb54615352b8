"""Scores by slice: by length of the history, popularity of the items, and whether training users bought them.

A model that memorised items scores well on popular and seen items only. A model that reads scores better with longer
histories. Floors (shuffled, constant) vary between slices too, so every slice includes them.
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
_OCCURRENCE = "occurrence"  # distinguishes two narratives about the same item
_NOT_OF_A_SLICE = ("distinct",)  # counts equal texts over all examples


def example_attributes(
    examples: Sequence[Example], interactions: pl.DataFrame, of_training_user: pl.Series
) -> pl.DataFrame:
    """The attributes that slices are made by.

    Args:
        examples: test narratives with their histories.
        interactions: column `item_id`; the rows of the histories refer to its order.
        of_training_user: for each interaction, whether its user is a training user (booleans).

    Returns:
        `user_id, feature, item_id` and the columns of `ATTRIBUTES`, one row per example in the given order;
        `items_seen` is `all`, `some` or `none`.
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

    Numeric attributes are cut at quantiles, so buckets have about equal sizes. Equal numbers stay together, so there
    may be fewer or uneven buckets. Each value of a text attribute is a bucket.

    Args:
        examples: a run's `examples.parquet`: `system, user_id, feature, item_id` and statistics.
        attributes: as from `example_attributes`.
        buckets: at most this many per attribute.
        resamples: bootstrap resamples of a bucket's users.
        seed: seed of the bootstrap.

    Returns:
        `feature, attribute, bucket, system` and the columns of `ESTIMATES`, without the metric `distinct`.

    Raises:
        ValueError: when the attributes lack an example, or `buckets` is below 1.
    """
    if buckets < 1:
        raise ValueError(f"buckets={buckets}; at least 1 is needed.")
    joined, known = _with_attributes(examples, attributes)
    names = [name for name in attributes.columns if name not in KEYS]
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


def in_buckets(
    examples: pl.DataFrame, attributes: pl.DataFrame, name: str, *, buckets: int = 4
) -> dict[str, pl.DataFrame]:
    """The examples of one feature in each bucket of one attribute, lowest first; arguments as for `slice_scores`."""
    joined, known = _with_attributes(examples, attributes)
    own = known.filter(pl.col("feature").is_in(examples["feature"].unique().implode()))
    place, labels = _buckets(own[name], joined[name], buckets)
    return {labels[at]: examples.filter(pl.Series(place == at)) for at in sorted(labels)}


def _with_attributes(examples: pl.DataFrame, attributes: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Examples with their attributes, and numbered attributes.

    Raises:
        ValueError: when an example has none.
    """
    rows, known = _numbered(examples, "system", *KEYS), _numbered(attributes, *KEYS)
    marked = known.with_columns(pl.lit(True).alias("known"))
    joined = rows.join(marked, on=[*KEYS, _OCCURRENCE], how="left", nulls_equal=True, maintain_order="left")
    if lacking := joined["known"].null_count():
        user = joined.filter(pl.col("known").is_null())["user_id"][0]
        raise ValueError(
            f"{lacking:,} of {joined.height:,} scored rows have no attributes; the first is user {user!r}'s. Take both "
            "from the same run."
        )
    return joined, known


def _numbered(frame: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """Numbers the rows with equal keys, in their order."""
    return frame.with_columns(pl.int_range(pl.len()).over(*keys).alias(_OCCURRENCE))


def _buckets(values: pl.Series, asked: pl.Series, count: int) -> tuple[Int[np.ndarray, " asked"], dict[int, str]]:
    """The bucket of each value in `asked`, and the label of each bucket.

    Args:
        values: values of all examples; they determine the cuts.
        asked: values of the scored rows.
        count: number of buckets.
    """
    if values.dtype == pl.String:
        places = {value: place for place, value in enumerate(sorted(values.unique()))}
        return np.array([places[value] for value in asked], dtype=np.int64), {at: name for name, at in places.items()}
    numbers = values.to_numpy().astype(np.float64)
    edges = np.unique(np.quantile(numbers, np.arange(1, count) / count, method="inverted_cdf"))
    place_of_value = np.searchsorted(edges, numbers)
    labels = {place: _range(numbers[place_of_value == place]) for place in np.unique(place_of_value).tolist()}
    return np.searchsorted(edges, asked.to_numpy().astype(np.float64)), labels


def _range(numbers: Float[np.ndarray, " members"]) -> str:
    decimals = 0 if (numbers == numbers.round()).all() else 1
    low, high = (f"{bound:,.{decimals}f}" for bound in (numbers.min(), numbers.max()))
    return low if low == high else f"{low} to {high}"
