"""An adapter whose tokens lie in a space of few dimensions."""

import torch
from torch import Tensor, nn

from regen.models.adapter import Adapter


class Bottleneck(Adapter):
    """Two projections with a narrow layer between them.

    Args:
        in_dim: Width of a fused vector.
        lm_dim: Width of the LM's input embeddings.
        rank: Width of the narrow layer.
    """

    def __init__(self, in_dim: int, lm_dim: int, *, rank: int) -> None:
        super().__init__(in_dim, lm_dim)
        self.down = nn.Linear(in_dim, rank, bias=False)
        self.up = nn.Linear(rank, lm_dim)

    def forward(self, fused: Tensor, mask: Tensor) -> Tensor:
        return self.up(self.down(fused))

    @torch.no_grad()
    def start_as(self, weight: Tensor, bias: Tensor) -> None:
        """The best approximation of this rank."""
        left, scale, right = torch.linalg.svd(weight, full_matrices=False)
        rank = self.down.out_features
        self.up.weight.copy_(left[:, :rank] * scale[:rank])
        self.up.bias.copy_(bias)
        self.down.weight.copy_(right[:rank])

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        self.up.weight.mul_(factor)
        self.up.bias.mul_(factor)
