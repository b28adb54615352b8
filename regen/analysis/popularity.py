"""CF's share of soft tokens by how popular their items are, with intervals over items (paper 6.2)."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from torch import Tensor

POPULARITY_EDGES = (1, 5, 10, 20, 50)
"""Lower bounds of the popularity buckets after the first, which holds items that CF never saw."""

_COVERAGE = (2.5, 97.5)


def share_by_popularity(
    share: Float[Tensor, " sample"],
    interactions: pl.DataFrame,
    *,
    edges: Sequence[int] = POPULARITY_EDGES,
    resamples: int = 1000,
    seed: int = 0,
) -> pl.DataFrame:
    """Distribution of a share by how many interactions CF had of the item.

    The interval of a median is a bootstrap over the bucket's items: all interactions with an item share its CF vector,
    so that they move together. With fewer than about 20 items it is too narrow.

    Args:
        share: CF's share of each interaction; nan counts nowhere.
        interactions: `item_id` and `popularity` of each.
        edges: Lower bounds of the buckets after the first, ascending.
        resamples: Bootstrap resamples of items.
        seed: Of the resamples.

    Returns:
        A row per bucket that holds anything, least popular first: `bucket`, `interactions`, `items`, `mean`, `median`,
        the 95 % interval of the median as `low` and `high`, `q10`, `q90`.
    """
    names = bucket_names(edges)
    bucket = np.digitize(interactions["popularity"].to_numpy(), edges)
    frame = interactions.select("item_id", pl.Series("order", bucket), pl.Series("share", share.numpy()))
    parts = [
        _distribution(frame.filter(pl.col("order") == order), names[order], resamples, seed)
        for order in np.unique(bucket).tolist()
    ]
    return pl.concat(parts)


def share_overall(
    share: Float[Tensor, " sample"], interactions: pl.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> pl.DataFrame:
    """The same columns as `share_by_popularity`, over all interactions."""
    frame = interactions.select("item_id", pl.Series("share", share.numpy()))
    return _distribution(frame, "all", resamples, seed)


def _distribution(frame: pl.DataFrame, bucket: str, resamples: int, seed: int) -> pl.DataFrame:
    share = pl.col("share")
    known = frame.with_columns(share.fill_nan(None)).drop_nulls("share").sort("share")
    low, high = _median_interval(known, resamples, seed)
    return known.select(
        pl.lit(bucket).alias("bucket"),
        pl.len().cast(pl.Int64).alias("interactions"),
        pl.col("item_id").n_unique().cast(pl.Int64).alias("items"),
        share.mean().alias("mean"),
        share.median().alias("median"),
        pl.lit(low, pl.Float64).alias("low"),
        pl.lit(high, pl.Float64).alias("high"),
        share.quantile(0.1, "linear").alias("q10"),
        share.quantile(0.9, "linear").alias("q90"),
    )


def _median_interval(known: pl.DataFrame, resamples: int, seed: int) -> tuple[float | None, float | None]:
    """95 % interval of the median of ascending shares, their items drawn with replacement; None without any."""
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
    """Median of values of which each counts several times or never, for every row of counts."""
    reached = counts.cumsum(axis=1)
    total = reached[:, -1:]
    lower = (2 * reached >= total).argmax(axis=1)
    upper = (2 * reached > total).argmax(axis=1)
    return (ascending[lower] + ascending[upper]).astype(np.float64) / 2


def bucket_names(edges: Sequence[int]) -> list[str]:
    """Names of the buckets from 0 to the first edge, between the edges, and from the last one on."""
    return [_interval(low, high) for low, high in zip([0, *edges], [*edges, None], strict=True)]


def _interval(low: int, high: int | None) -> str:
    if high is None:
        return f"{low}+"
    return str(low) if high == low + 1 else f"{low}-{high - 1}"
