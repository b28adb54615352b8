"""CF's share of soft tokens by the popularity of their items, with intervals over items (paper 6.2)."""

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from torch import Tensor

POPULARITY_EDGES = (1, 5, 10, 20, 50)
"""Lower bounds of the popularity buckets after the first, which has the items that CF never saw."""
BUCKETS = ("0", "1-4", "5-9", "10-19", "20-49", "50+")

_COVERAGE = (2.5, 97.5)


def share_by_popularity(share: Float[Tensor, " sample"], interactions: pl.DataFrame) -> pl.DataFrame:
    """Distribution of a share by the number of interactions of the item that CF was fitted on.

    The interval of a median is a bootstrap over the items of the bucket, because all interactions with an item share
    its CF vector. With fewer than about 20 items it is too narrow.

    Args:
        share: CF's share of each interaction; nan is ignored.
        interactions: `item_id` and `popularity` of each interaction.

    Returns:
        One row per nonempty bucket, least popular first: `bucket`, `interactions`, `items`, `mean`, `median`, the 95 %
        interval of the median as `low` and `high`, `q10`, `q90`.
    """
    bucket = np.digitize(interactions["popularity"].to_numpy(), POPULARITY_EDGES)
    parts = [share_overall(share[bucket == at], interactions.filter(bucket == at)) for at in np.unique(bucket)]
    return pl.concat(parts).with_columns(bucket=pl.Series([BUCKETS[at] for at in np.unique(bucket)]))


def share_overall(
    share: Float[Tensor, " sample"], interactions: pl.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> pl.DataFrame:
    """The columns of `share_by_popularity` over all interactions, in the bucket "all"."""
    value = pl.col("share")
    frame = interactions.select("item_id", pl.Series("share", share.numpy()))
    known = frame.with_columns(value.fill_nan(None)).drop_nulls("share").sort("share")
    low, high = _median_interval(known, resamples, seed)
    return known.select(
        bucket=pl.lit("all"),
        interactions=pl.len().cast(pl.Int64),
        items=pl.col("item_id").n_unique().cast(pl.Int64),
        mean=value.mean(),
        median=value.median(),
        low=pl.lit(low, pl.Float64),
        high=pl.lit(high, pl.Float64),
        q10=value.quantile(0.1, "linear"),
        q90=value.quantile(0.9, "linear"),
    )


def _median_interval(known: pl.DataFrame, resamples: int, seed: int) -> tuple[float | None, float | None]:
    """95 % interval of the median of ascending shares, with their items resampled; None without any share."""
    if known.is_empty():
        return None, None
    item = known["item_id"].rank("dense").to_numpy().astype(np.int64) - 1
    items = int(item.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=resamples)
    medians = _medians(known["share"].to_numpy(), drawn[:, item])
    low, high = np.percentile(medians, _COVERAGE)
    return float(low), float(high)


def _medians(
    ascending: Float[np.ndarray, " sample"], counts: Int[np.ndarray, "resamples sample"]
) -> Float[np.ndarray, " resamples"]:
    """Weighted medians: for every row of counts, the median of the values repeated as often as counted."""
    reached = counts.cumsum(axis=1)
    total = reached[:, -1:]
    lower = (2 * reached >= total).argmax(axis=1)
    upper = (2 * reached > total).argmax(axis=1)
    return (ascending[lower] + ascending[upper]).astype(np.float64) / 2
