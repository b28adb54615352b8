"""The input tensors of a training or generation step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Layout:
    """Index tensors of a training step whose rows are padded at their ends only.

    Attributes:
        order: Column in the padded batch for each position.
        predicts: Positions in the flattened rows that predict a narrative token.
        targets: The tokens to predict there.
    """

    order: Int[Tensor, "batch length"]
    predicts: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]

    def pin_memory(self) -> "Layout":
        """A copy in pinned memory."""
        return Layout(self.order.pin_memory(), self.predicts.pin_memory(), self.targets.pin_memory())


class Rows:
    """Base class of batches: dataclasses of tensors with one row per example."""

    def on(self, device: torch.device) -> Any:
        """A copy on the device, without the layout. Not named `to`, because Lightning would call it."""
        moved = {name: value.to(device) if isinstance(value, Tensor) else None for name, value in vars(self).items()}
        return type(self)(**moved)

    def pin_memory(self) -> Any:
        """A copy in pinned memory; the data loader calls this."""
        pinned = {name: value.pin_memory() for name, value in vars(self).items() if value is not None}
        return type(self)(**pinned)


@dataclass
class Batch(Rows):
    """Examples padded to common lengths: histories and prompts on the left, narratives on the right.

    Attributes:
        examples: Index of each row's example in its split.
        fused: Interaction vectors, oldest first.
        history_mask: True where `fused` holds an interaction.
        prompt: Token ids of the feature's prompt.
        prompt_mask: True where `prompt` holds a token.
        target: Token ids of the narrative and its end token.
        target_mask: True where `target` holds a token.
        layout: Set in training, before the batch moves to its device.
    """

    examples: Int[Tensor, " batch"]
    fused: Float[Tensor, "batch history in_dim"]
    history_mask: Bool[Tensor, "batch history"]
    prompt: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    target: Int[Tensor, "batch target"]
    target_mask: Bool[Tensor, "batch target"]
    layout: Layout | None = None


def pad_rows(rows: Sequence[Tensor], value: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Pads rows to the longest one. Returns them and a mask that is false on padding."""
    side = "left" if left else "right"
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
    ones = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_value=False, padding_side=side)
    return padded, mask
