"""What one training or generation step reads."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


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
    """

    examples: Int[Tensor, " batch"]
    fused: Float[Tensor, "batch history in_dim"]
    history_mask: Bool[Tensor, "batch history"]
    prompt: Int[Tensor, "batch prompt"]
    prompt_mask: Bool[Tensor, "batch prompt"]
    target: Int[Tensor, "batch target"]
    target_mask: Bool[Tensor, "batch target"]
