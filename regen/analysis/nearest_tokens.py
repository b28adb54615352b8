"""The LM's tokens nearest to soft tokens (paper 6.1)."""

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from regen.analysis.adapter_sample import AdapterSample


def item_soft_tokens(sample: AdapterSample) -> tuple[pl.DataFrame, Float[Tensor, "items lm_dim"]]:
    """The mean soft token of every sampled item, most popular first.

    Returns:
        Columns `item_id`, `title`, `popularity`, `interactions` (in the sample), and a tensor with one row per item.
    """
    columns = ["item_id", "title", "popularity"]
    items = sample.interactions.group_by(columns).len("interactions").sort("popularity", "item_id", descending=True)
    item = sample.interactions.join(items.with_row_index("item"), on="item_id", maintain_order="left")["item"]
    index = torch.from_numpy(item.to_numpy().astype(np.int64))
    sums = torch.zeros(len(items), sample.soft.shape[1]).index_add(0, index, sample.soft)
    return items, sums / torch.bincount(index)[:, None]


def nearest_tokens(
    vectors: Float[Tensor, "vectors lm_dim"], token_embeddings: Float[Tensor, "tokens lm_dim"], *, count: int = 5
) -> tuple[Float[Tensor, "vectors count"], Int[Tensor, "vectors count"]]:
    """Cosines and ids of the LM tokens nearest to each vector, nearest first (paper 6.1)."""
    tokens = torch.nn.functional.normalize(token_embeddings, dim=1)
    batches = torch.split(torch.nn.functional.normalize(vectors, dim=1), 256)
    cosines, ids = zip(*((batch @ tokens.T).topk(count, dim=1) for batch in batches), strict=True)
    return torch.cat(cosines), torch.cat(ids)


def nearest_token_table(sample: AdapterSample, *, items: int = 20, count: int = 5) -> pl.DataFrame:
    """The LM tokens nearest to the soft tokens of the most popular sampled items.

    Returns:
        One row per item: the columns of `item_soft_tokens`, `tokens` as text and their `cosines`, nearest first.
    """
    described, soft = item_soft_tokens(sample)
    cosines, ids = nearest_tokens(soft[:items], sample.token_embeddings, count=count)
    texts = [[sample.tokenizer.decode([token]) for token in row] for row in ids.tolist()]
    return described.head(items).with_columns(tokens=pl.Series(texts), cosines=pl.Series(cosines.tolist()))
