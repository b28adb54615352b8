"""What one training or generation step reads."""

from dataclasses import dataclass, replace

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


@dataclass
class Batch:
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

    def pin_memory(self) -> "Batch":
        """A copy from which a GPU can read while it computes (called by the loader)."""
        return replace(self, **{name: value.pin_memory() for name, value in vars(self).items() if value is not None})
