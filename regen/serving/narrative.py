"""What goes into the model for a history, and what comes out of it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regen.data.batch import Batch, pad_rows


@dataclass(frozen=True)
class Narrative:
    """A narrative and how much of its history the model could place.

    Attributes:
        text: The narrative; so is `str(narrative)`.
        confidence: Share of the interactions read whose item has a CF factor, for an encoder with CF (and whose item
            is known, for `random`); 1.0 for encoders that need no item table. It says how much of the input reached
            the model, not how likely the text is to be true.
        unknown_items: Id, or else title, of the items that lower it.
    """

    text: str
    confidence: float
    unknown_items: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Prepared:
    """A history, checked and encoded.

    Attributes:
        feature: What will be written.
        fused: The vector of each interaction, oldest first.
        prompt: Token ids of the feature's prompt.
        prefix: Positions that the LM reads before the narrative.
        confidence: As of `Narrative`.
        unknown_items: As of `Narrative`.
    """

    feature: str
    fused: Float[Tensor, "history in_dim"]
    prompt: Int[Tensor, " prompt"]
    prefix: int
    confidence: float
    unknown_items: tuple[str, ...]


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
