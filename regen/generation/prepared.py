"""What narratives are decoded from, and a history that is ready to be narrated."""

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
        feature: What will be written.
        fused: The vector of each interaction, oldest first.
        prompt: Token ids of the feature's prompt.
        prefix: Positions that the LM reads before the narrative.
        confidence: As of `regen.serving.Narrative`.
        unknown_items: As of `regen.serving.Narrative`.
    """

    feature: str
    fused: Float[Tensor, "history in_dim"]
    prompt: Int[Tensor, " prompt"]
    prefix: int
    confidence: float
    unknown_items: tuple[str, ...]


class Prefixes(Protocol):
    """What narratives are decoded from: a split, or histories that someone gave."""

    @property
    def prefixes(self) -> Sequence[int]:
        """Positions before each narrative."""

    def collate(self, indices: Sequence[int]) -> Rows:
        """Pads the rows of one step."""


def collate(prepared: list[Prepared], *, pad: int) -> Batch:
    """Pads histories and prompts on the left, as in training; the narratives are empty.

    Args:
        prepared: One or more histories.
        pad: Token id of padding.
    """
    fused, history_mask = pad_rows([one.fused for one in prepared], 0, left=True)
    prompt, prompt_mask = pad_rows([one.prompt for one in prepared], pad, left=True)
    nothing = torch.empty(len(prepared), 0, dtype=torch.long)
    return Batch(torch.arange(len(prepared)), fused, history_mask, prompt, prompt_mask, nothing, nothing.to(torch.bool))
