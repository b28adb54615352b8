"""An attention function for `transformers` that copies no keys for grouped queries and uses masks only if needed.

`transformers` calls it by its name. Its own function waits for the device to learn whether a mask is needed, and with a
mask it repeats the keys for each query head of a group.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface

ATTENTION = "regen"
UNUSED = {  # arguments that do not change the result
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "use_cache",
}


@contextmanager
def own_attention(decoder: Any) -> Iterator[None]:
    """Makes the decoder use `attend`. Without a mask, its attention is causal."""
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        decoder.config._attn_implementation = before


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Counts the calls of `attend`; yields a function that returns the count."""
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
    """Scaled dot-product attention with the signature that `transformers` expects.

    Args:
        module: The attention layer.
        query: Queries of the new positions.
        key: Keys of all positions; with grouped queries they have fewer heads.
        value: Values of all positions.
        attention_mask: With one new position, true at all positions up to it; None for causal attention.
        dropout: Share of attention weights dropped.
        scaling: Factor of the scores; by default the inverse square root of `dim`.
        sliding_window: Number of positions that a token attends to, in layers with such a limit.
        others: Arguments of other architectures.

    Raises:
        NotImplementedError: If another argument is given that could change the result.
    """
    if unknown := sorted(name for name, given in others.items() if given is not None and name not in UNUSED):
        raise NotImplementedError(f"regen's attention does not support the argument {', '.join(unknown)}")
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
    """Attention of one new position. One product covers all query heads of a group, so no key is copied."""
    rows, heads, new, dim = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], dim)
    scores = torch.matmul(grouped * (dim**-0.5 if scaling is None else scaling), key.transpose(2, 3))
    weights = scores.masked_fill_(~mask, float("-inf")).softmax(dim=-1)
    return torch.matmul(weights, value).reshape(rows, new, heads, value.shape[3])


AttentionInterface.register(ATTENTION, attend)
