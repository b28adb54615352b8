"""Greedy decoding of many narratives together, with continuous batching.

`transformers`' `generate` keeps a batch until its longest row ends and copies the cache at every step. Here the cache
of each layer is one tensor with a slot per row. New keys and values are written in place, and a row that ends frees its
slot. Active rows always occupy the first slots, so a step computes nothing for free slots.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regen.data.batch import Rows
from regen.models.attention import own_attention
from regen.models.head_loss import lm_head
from regen.models.soft_token_lm import SoftTokenLM, flush_order


@dataclass(frozen=True)
class Token:
    """A new token of a row.

    Attributes:
        key: Key of the row.
        id: Token id.
        last: Whether the row has ended, by an end token or its limit.
    """

    key: int
    id: int
    last: bool


class RowDecoder:
    """Decodes rows that may enter and leave between steps.

    Args:
        model: The model, in evaluation mode, on the device to use.
        slots: The most rows at one time.
        length: The most positions of one row: soft tokens, prompt and narrative.
        stop_ids: Tokens that end a narrative.
    """

    def __init__(self, model: SoftTokenLM, *, slots: int, length: int, stop_ids: Collection[int]) -> None:
        self.model = model
        self.slots = slots
        self.stop_ids = frozenset(stop_ids)
        self.keys: list[int] = []
        self._limits: list[int] = []  # tokens that each row may still write
        self._cache = _SlotCache(slots, length)
        self._ends: Int[Tensor, " active"] = torch.empty(0, dtype=torch.long)  # cached positions of each row
        self._next: Int[Tensor, " active"] = torch.empty(
            0, dtype=torch.long
        )  # latest token of each row, not cached yet
        self.head = lm_head(model.causal_lm)
        self._embed = model.lm.get_input_embeddings()

    @property
    def free(self) -> int:
        """Slots without a row."""
        return self.slots - len(self.keys)

    @torch.no_grad()
    def add(self, batch: Rows, keys: Sequence[int], limits: Sequence[int]) -> list[Token]:
        """Adds the rows of a batch and returns the first token of each.

        Args:
            batch: As for `SoftTokenLM`; its targets are ignored.
            keys: A key for each row.
            limits: The most tokens of each row.

        Raises:
            ValueError: If there are more rows than free slots, or one is longer than a slot.
        """
        if len(keys) > self.free:
            raise ValueError(f"{len(keys)} rows do not fit into {self.free} free slots.")
        prefix, mask = self.model.prefix(batch)
        order, lengths = flush_order(mask)
        embeds = prefix.take_along_dim(order[..., None], dim=1)
        if (longest := int(lengths.max()) + max(limits)) > self._cache.length:
            raise ValueError(f"A row needs {longest} positions; a slot has {self._cache.length}.")
        self._cache.enter(len(self.keys))
        hidden = self._read(embeds, torch.arange(embeds.shape[1], device=embeds.device)[None], None)
        last = hidden[torch.arange(len(keys), device=hidden.device), lengths - 1]
        self.keys.extend(keys)
        self._limits.extend(limits)
        self._ends = torch.cat([self._ends.to(lengths.device), lengths])
        return self._write(last, first=len(self.keys) - len(keys))

    @torch.no_grad()
    def step(self) -> list[Token]:
        """Returns the next token of every row."""
        if not self.keys:
            return []
        embeds = self._embed(self._next[:, None])
        self._cache.go_on(self._ends)
        seen = torch.arange(self._cache.read, device=embeds.device) <= self._ends[:, None, None, None]
        hidden = self._read(embeds, self._ends[:, None], seen)
        self._ends = self._ends + 1
        return self._write(hidden[:, 0], first=0)

    def drop(self, key: int) -> None:
        """Removes a row; does nothing if it has ended already."""
        if key in self.keys:
            self._leave([self.keys.index(key)])

    def _read(
        self, embeds: Float[Tensor, "rows new lm_dim"], positions: Int[Tensor, "#rows new"], mask: Tensor | None
    ) -> Float[Tensor, "rows new lm_dim"]:
        with own_attention(self.model.decoder):
            hidden: Tensor = self.model.decoder(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
        return hidden

    def _write(self, hidden: Float[Tensor, "rows lm_dim"], *, first: int) -> list[Token]:
        ids = self.head(hidden).argmax(dim=-1)
        self._next = torch.cat([self._next[:first].to(ids.device), ids])
        tokens: list[Token] = []
        leaving: list[int] = []
        for row, token in enumerate(ids.tolist(), start=first):
            self._limits[row] -= 1
            last = token in self.stop_ids or self._limits[row] == 0
            tokens.append(Token(self.keys[row], token, last))
            if last:
                leaving.append(row)
        self._leave(leaving)
        return tokens

    def _leave(self, rows: list[int]) -> None:
        """Removes rows and moves the last ones into their slots."""
        for row in sorted(rows, reverse=True):
            last = len(self.keys) - 1
            if row != last:
                self._cache.move(last, row, int(self._ends[last]))
                self._ends[row], self._next[row] = self._ends[last].clone(), self._next[last].clone()
                self.keys[row], self._limits[row] = self.keys[last], self._limits[last]
            self.keys.pop()
            self._limits.pop()
            self._ends, self._next = self._ends[:last], self._next[:last]


def row_bytes(model: SoftTokenLM, length: int) -> int:
    """Bytes of the key-value cache of one row with that many positions."""
    config = model.decoder.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = model.lm.get_input_embeddings().weight.element_size()
    return int(2 * config.num_hidden_layers * heads * dim * width * length)


class _SlotCache:
    """Key-value cache: for each layer two tensors `slots heads positions dim`, written in place."""

    def __init__(self, slots: int, length: int) -> None:
        self.slots = slots
        self.length = length
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.read = 0  # positions that attention reads in the current step
        self._first: int | None = None  # slot of the first entering row
        self._ends: Int[Tensor, " active"] = torch.empty(0, dtype=torch.long)

    def enter(self, first: int) -> None:
        """Sets up a pass that reads new rows into the slots from `first` on."""
        self._first = first

    def go_on(self, ends: Int[Tensor, " active"]) -> None:
        """Sets up a pass that reads one more token of every row."""
        self._first, self._ends, self.read = None, ends, int(ends.max()) + 1
        self._rows = torch.arange(len(ends), device=ends.device)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Stores new keys and values and returns all to attend to; called by `transformers`' attention layers."""
        if layer not in self.layers:
            shape = (self.slots, keys.shape[1], self.length)
            # Values start at zero, because a masked NaN would still make the result NaN.
            self.layers[layer] = keys.new_empty(*shape, keys.shape[3]), values.new_zeros(*shape, values.shape[3])
        for kept, new in zip(self.layers[layer], (keys, values), strict=True):
            if self._first is None:
                kept[self._rows, :, self._ends] = new[:, :, 0]
            else:
                kept[self._first : self._first + len(new), :, : new.shape[2]] = new
        if self._first is not None:
            return keys, values
        kept_keys, kept_values = self.layers[layer]
        active = len(self._ends)
        return kept_keys[:active, :, : self.read], kept_values[:active, :, : self.read]

    def move(self, source: int, target: int, positions: int) -> None:
        """Copies a row into another slot."""
        for both in self.layers.values():
            for kept in both:
                kept[target, :, :positions] = kept[source, :, :positions]

    def get_seq_length(self, *_: Any) -> int:
        """Part of the interface of `transformers`, which needs it only if no positions are given."""
        return 0
