"""Inputs of decoding: encoded histories and their batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regen.data.batch import Batch, Rows, pad_rows


@dataclass(frozen=True, eq=False)
class Prepared:
    """A history, checked and encoded.

    Attributes:
        feature: The feature to write.
        fused: Vector of each interaction, oldest first.
        prompt: Token ids of the feature's prompt.
        prefix: Positions that the LM reads before the narrative.
        confidence: As in `regen.serving.Narrative`.
        unknown_items: As in `regen.serving.Narrative`.
    """

    feature: str
    fused: Float[Tensor, "history in_dim"]
    prompt: Int[Tensor, " prompt"]
    prefix: int
    confidence: float
    unknown_items: tuple[str, ...]


class Prefixes(Protocol):
    """Interface of a split or a list of histories, as decoding reads them."""

    @property
    def prefixes(self) -> Sequence[int]:
        """Positions before each narrative."""

    def collate(self, indices: Sequence[int]) -> Rows:
        """Pads these rows into one batch."""


def collate(prepared: list[Prepared], *, pad: int) -> Batch:
    """Pads histories and prompts on the left, as in training; narratives are empty.

    Args:
        prepared: One or more histories.
        pad: Padding token.
    """
    fused, history_mask = pad_rows([one.fused for one in prepared], 0, left=True)
    prompt, prompt_mask = pad_rows([one.prompt for one in prepared], pad, left=True)
    nothing = torch.empty(len(prepared), 0, dtype=torch.long)
    return Batch(torch.arange(len(prepared)), fused, history_mask, prompt, prompt_mask, nothing, nothing.to(torch.bool))
