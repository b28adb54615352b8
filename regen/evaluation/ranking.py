"""Scores of a recommender: the rank of the item that was bought next among all items of the catalogue."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from regen.data.tables import NEXT_ITEM
from regen.evaluation.text_metrics import CUTS


def rank_of(scores: Float[Tensor, "rows items"], target: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Rank of each row's target, from 1; of items with equal scores the first in the catalogue ranks first."""
    own = scores.gather(1, target[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < target[:, None]
    ranks: Tensor = 1 + ((scores > own) | ((scores == own) & before)).sum(dim=1)
    return ranks


def ranking_statistics(
    users: list[str], items: list[str], ranks: Int[np.ndarray, " users"], cold: np.ndarray, *, system: str
) -> pl.DataFrame:
    """Per-user statistics: Recall@k, NDCG@10, reciprocal rank and, if there are cold items, Recall@10 on them.

    Args:
        users: Ids of the users.
        items: Id of the item that each user bought next.
        ranks: Rank of this item, from 1; 0 if the system did not rank it.
        cold: Whether no training user bought this item.
        system: Name of the system.
    """
    named = ranks > 0
    places = np.where(named, ranks, np.iinfo(np.int64).max // 2).astype(np.float64)
    found = {f"recall_{k}": (named & (ranks <= k)).astype(float) for k in CUTS}
    of_cold = {"cold_examples": cold.astype(float), "cold_recall_10": found["recall_10"] * cold} if cold.any() else {}
    columns = {
        **found,
        "ndcg_10": np.where(named & (ranks <= 10), 1 / np.log2(1 + places), 0.0),
        "mrr": np.where(named, 1 / places, 0.0),
        **of_cold,
    }
    return statistics_frame(users, items, columns, system=system)


def statistics_frame(users: list[str], items: list[str], columns: Mapping[str, Any], *, system: str) -> pl.DataFrame:
    """Statistics of one system as rows of `examples.parquet`, one per user."""
    keys = {"system": system, "user_id": users, "feature": NEXT_ITEM, "item_id": items, "examples": 1.0}
    return pl.DataFrame({**keys, **columns})
