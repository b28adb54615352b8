"""The attention that a language model runs with here: grouped queries without copies, masks only where they are needed.

`transformers` asks the device whether a mask is needed at all and repeats keys for each group of query heads under a
mask; both are avoided by an attention function of our own, which it calls by name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "regen"
UNUSED = {  # arguments that change no result here
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "use_cache",
}


@contextmanager
def own_attention(decoder: Any) -> Iterator[None]:
    """Inside, the decoder attends by `attend`; where it is given no mask, a token sees itself and what came before."""
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        decoder.config._attn_implementation = before


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Inside, the calls of `attend` are counted; yields a function that says how many there were."""
    made = 0

    def counting(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        nonlocal made
        made += 1
        return attend(*args, **kwargs)

    AttentionInterface.register(ATTENTION, counting)
    try:
        yield lambda: made
    finally:
        AttentionInterface.register(ATTENTION, attend)


def attend(
    module: nn.Module,
    query: Float[Tensor, "rows heads new dim"],
    key: Float[Tensor, "rows kv_heads positions dim"],
    value: Float[Tensor, "rows kv_heads positions dim"],
    attention_mask: Bool[Tensor, "#rows 1 #new positions"] | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "rows new heads dim"], None]:
    """Scaled dot-product attention, in the form `transformers` calls it.

    Args:
        module: The attention layer.
        query: Of the new positions.
        key: Of all positions, for fewer heads where queries are grouped.
        value: Likewise.
        attention_mask: True at every position up to the query's, for one new position; None for causal attention.
        dropout: Share of attention weights dropped.
        scaling: Of the scores; the inverse root of `dim` without it.
        sliding_window: How far back causal attention looks, in layers that have such a limit.
        others: Arguments of other architectures.

    Raises:
        NotImplementedError: If another argument has a value, because it could change the result.
    """
    if unknown := sorted(name for name, given in others.items() if given is not None and name not in UNUSED):
        raise NotImplementedError(f"our attention does not know the argument {', '.join(unknown)}")
    window = key.shape[2] if sliding_window is None else sliding_window
    windowed = window < key.shape[2]
    if attention_mask is not None and query.shape[2] == 1:
        if windowed:
            seen = attention_mask.sum(dim=-1, keepdim=True)
            attention_mask = attention_mask & (torch.arange(key.shape[2], device=key.device) >= seen - window)
        return _attend_once(query, key, value, attention_mask, scaling), None
    if attention_mask is None and windowed:
        at = torch.arange(key.shape[2], device=key.device)
        attention_mask = (at <= at[:, None]) & (at > at[:, None] - window)
    attended = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        is_causal=attention_mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    return attended.transpose(1, 2), None


def _attend_once(
    query: Float[Tensor, "rows heads 1 dim"],
    key: Float[Tensor, "rows kv_heads positions dim"],
    value: Float[Tensor, "rows kv_heads positions dim"],
    mask: Bool[Tensor, "#rows 1 1 positions"],
    scaling: float | None,
) -> Float[Tensor, "rows 1 heads dim"]:
    """One new position: the query heads of a group meet their keys in one product, and no key is copied."""
    rows, heads, new, dim = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], dim)
    scores = torch.matmul(grouped * (dim**-0.5 if scaling is None else scaling), key.transpose(2, 3))
    weights = scores.masked_fill_(~mask, float("-inf")).softmax(dim=-1)
    return torch.matmul(weights, value).reshape(rows, new, heads, value.shape[3])


AttentionInterface.register(ATTENTION, attend)
