"""Greedy decoding through `transformers`' `generate`, with the interface of `RowDecoder`."""

from collections import deque
from collections.abc import Collection, Sequence

import torch
from transformers import GenerationConfig

from regen.data.batch import Rows
from regen.generation.row_decoder import RowDecoder, Token
from regen.models.soft_token_lm import SoftTokenLM


def greedy_decoder(
    model: SoftTokenLM, *, slots: int, length: int, stop_ids: Collection[int]
) -> "RowDecoder | NativeDecoder":
    """The fastest decoder that is correct for this LM. Arguments as for `RowDecoder`."""
    if model.fast_path.rows:
        return RowDecoder(model, slots=slots, length=length, stop_ids=stop_ids)
    return NativeDecoder(model, slots=slots, stop_ids=stop_ids)


class NativeDecoder:
    """Generates whole texts when rows enter, then returns them one token per step.

    For LMs whose state is more than keys and values (LFM2, Mamba), or that need their own attention.

    Args:
        model: The model, in evaluation mode, on the device to use.
        slots: The most rows at one time.
        stop_ids: Tokens that end a narrative.
    """

    def __init__(self, model: SoftTokenLM, *, slots: int, stop_ids: Collection[int]) -> None:
        self.model = model
        self.slots = slots
        self.stop_ids = frozenset(stop_ids)
        self._waiting: dict[int, deque[int]] = {}  # tokens of each row that are not returned yet

    @property
    def keys(self) -> list[int]:
        """Keys of the rows that still have tokens."""
        return list(self._waiting)

    @property
    def free(self) -> int:
        """Slots without a row."""
        return self.slots - len(self._waiting)

    @torch.no_grad()
    def add(self, batch: Rows, keys: Sequence[int], limits: Sequence[int]) -> list[Token]:
        """Generates the texts of a batch and returns the first token of each. Arguments as for `RowDecoder.add`.

        Raises:
            ValueError: If there are more rows than free slots.
        """
        if len(keys) > self.free:
            raise ValueError(f"{len(keys)} rows do not fit into {self.free} free slots.")
        prefix, mask = self.model.prefix(batch)
        for limit in sorted(set(limits)):  # `generate` has one limit for all rows
            rows = [row for row, its in enumerate(limits) if its == limit]
            longest = int(mask[rows].sum(dim=1).max())
            written = self.model.continue_prefix(
                *_cut(prefix[rows], mask[rows], longest),
                GenerationConfig(
                    max_new_tokens=limit, do_sample=False, eos_token_id=sorted(self.stop_ids) or None, pad_token_id=0
                ),
            )
            for row, ids in zip(rows, written.tolist(), strict=True):
                self._waiting[keys[row]] = deque(self._until_stop(ids[:limit]))
        return self._hand_out(keys)

    def step(self) -> list[Token]:
        """Returns one token of every row."""
        return self._hand_out(self.keys)

    def drop(self, key: int) -> None:
        """Removes a row; does nothing if it has ended already."""
        self._waiting.pop(key, None)

    def _until_stop(self, ids: list[int]) -> list[int]:
        end = next((at for at, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return ids[: end + 1]

    def _hand_out(self, keys: Sequence[int]) -> list[Token]:
        tokens = []
        for key in keys:
            waiting = self._waiting[key]
            tokens.append(Token(key, waiting.popleft(), last=not waiting))
            if not waiting:
                del self._waiting[key]
        return tokens


def _cut(prefix: torch.Tensor, mask: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves all padding to the left and cuts rows to `longest`: `generate` accepts left padding only."""
    order = mask.long().argsort(dim=1, stable=True)[:, -longest:]
    return prefix.take_along_dim(order[..., None], dim=1), mask.take_along_dim(order, dim=1)
