"""What one training or generation step reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class Layout:
    """Where a training step finds things once padding stands at the rows' ends only.

    Attributes:
        order: Column of each position in the padded row.
        predicts: Positions, of all rows one after the other, that predict a narrative's token.
        targets: These tokens.
    """

    order: Int[Tensor, "batch length"]
    predicts: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]

    def pin_memory(self) -> "Layout":
        """A copy from which a GPU can read while it computes."""
        return Layout(self.order.pin_memory(), self.predicts.pin_memory(), self.targets.pin_memory())


class Rows:
    """Base of the batches: dataclasses of tensors with a row per example."""

    def on(self, device: torch.device) -> Any:
        """The same on that device, without a layout. (Lightning moves whatever has a `to` by it.)"""
        moved = {name: value.to(device) if isinstance(value, Tensor) else None for name, value in vars(self).items()}
        return type(self)(**moved)

    def pin_memory(self) -> Any:
        """A copy from which a GPU can read while it computes (called by the loader)."""
        pinned = {name: value.pin_memory() for name, value in vars(self).items() if value is not None}
        return type(self)(**pinned)


@dataclass
class Batch(Rows):
    """Examples padded to common lengths: histories and prompts on the left, narratives on the right.

    Attributes:
        examples: Index of each row in its split.
        fused: Interaction vectors, oldest first.
        history_mask: True where `fused` holds an interaction.
        prompt: Token ids of the feature's prompt.
        prompt_mask: True where `prompt` holds a token.
        target: Token ids of the narrative and its end token.
        target_mask: True where `target` holds a token.
        layout: Of a training step, where it was made before the batch went to its device.
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
    """Stacks ragged rows; returns them and a mask of what is not padding."""
    side = "left" if left else "right"
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
    ones = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_value=False, padding_side=side)
    return padded, mask
