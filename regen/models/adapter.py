"""Adapters, which map each interaction's fused vector to one soft token (paper 4.2).

The ridge warm start sets an adapter to an affine map (`start_as`) and scales its output (`scale_output`).
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Adapter(nn.Module, ABC):
    """Base of the adapters.

    Args:
        in_dim: Width of a fused vector, K.
        lm_dim: Width of the LM's input embeddings, H.

    Attributes:
        version: Raise it when the same config starts to give another adapter; the fingerprint of runs contains it.
        per_interaction: Whether each soft token depends on its own interaction alone.
    """

    version = 1
    per_interaction = True

    def __init__(self, in_dim: int, lm_dim: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.lm_dim = lm_dim

    @abstractmethod
    def forward(
        self, fused: Float[Tensor, "batch history in_dim"], mask: Bool[Tensor, "batch history"]
    ) -> Float[Tensor, "batch history lm_dim"]:
        """Returns soft tokens. Positions where `mask` is false are padding; their tokens are not used."""

    @abstractmethod
    def start_as(self, weight: Float[Tensor, "lm_dim in_dim"], bias: Float[Tensor, " lm_dim"]) -> None:
        """Sets the parameters so that the adapter computes `weight @ x + bias` until it is trained."""

    @abstractmethod
    def scale_output(self, factor: float) -> None:
        """Changes the parameters so that the output is multiplied by `factor`."""


class LinearAdapter(Adapter):
    """One projection, W_cf e + W_s s + b, whose CF and content blocks can be compared (paper 6)."""

    def __init__(self, in_dim: int, lm_dim: int) -> None:
        super().__init__(in_dim, lm_dim)
        self.projection = nn.Linear(in_dim, lm_dim)

    def forward(
        self, fused: Float[Tensor, "batch history in_dim"], mask: Bool[Tensor, "batch history"]
    ) -> Float[Tensor, "batch history lm_dim"]:
        return self.projection(fused)

    @torch.no_grad()
    def start_as(self, weight: Float[Tensor, "lm_dim in_dim"], bias: Float[Tensor, " lm_dim"]) -> None:
        _set(self.projection, weight, bias)

    def scale_output(self, factor: float) -> None:
        _scale(self.projection, factor)


class MLPAdapter(Adapter):
    """One hidden layer with GELU, applied to each interaction separately.

    With `residual`, the output is that of a linear path plus that of the hidden layer, which starts at zero and is
    divided by its width. Without it, this is the paper's adapter (4.2), which needs a lower learning rate.

    Args:
        in_dim: Width of a fused vector, K.
        lm_dim: Width of the LM's input embeddings, H.
        hidden_dim: Width of the hidden layer.
        residual: Whether to add the linear path.
    """

    version = 2  # 1 had no linear path

    def __init__(self, in_dim: int, lm_dim: int, *, hidden_dim: int, residual: bool = True) -> None:
        super().__init__(in_dim, lm_dim)
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, lm_dim, bias=not residual)
        self.skip = nn.Linear(in_dim, lm_dim) if residual else None
        if residual:
            nn.init.zeros_(self.output.weight)

    def forward(
        self, fused: Float[Tensor, "batch history in_dim"], mask: Bool[Tensor, "batch history"]
    ) -> Float[Tensor, "batch history lm_dim"]:
        nonlinear = self.output(nn.functional.gelu(self.hidden(fused)))
        return nonlinear if self.skip is None else self.skip(fused) + nonlinear / self.hidden.out_features

    @torch.no_grad()
    def start_as(self, weight: Float[Tensor, "lm_dim in_dim"], bias: Float[Tensor, " lm_dim"]) -> None:
        if self.skip is not None:
            _set(self.skip, weight, bias)
        else:
            self._start_in_pairs(weight, bias)

    def _start_in_pairs(self, weight: Float[Tensor, "lm_dim in_dim"], bias: Float[Tensor, " lm_dim"]) -> None:
        """Sets the two layers to the affine map, by pairs of hidden units: gelu(z) - gelu(-z) = z.

        The map is exact with at least 2 * rank(weight) hidden units; otherwise the largest singular values are kept.
        """
        left, singular, right = torch.linalg.svd(weight, full_matrices=False)
        rank = min(len(singular), self.hidden.out_features // 2)
        root = singular[:rank].sqrt()
        inward, outward = root[:, None] * right[:rank], left[:, :rank] * root
        spare = self.hidden.out_features - 2 * rank
        self.hidden.weight[: 2 * rank] = torch.cat([inward, -inward])
        self.hidden.bias.zero_()
        self.output.weight.copy_(torch.cat([outward, -outward, outward.new_zeros(self.lm_dim, spare)], dim=1))
        self.output.bias.copy_(bias)

    def scale_output(self, factor: float) -> None:
        _scale(self.output, factor)
        if self.skip is not None:
            _scale(self.skip, factor)


class TransformerAdapter(Adapter):
    """A bidirectional transformer encoder over the history, added to a linear path.

    The encoder's output starts at zero and is divided by its width. Its states have unit variance, so one step of Adam
    on an undivided output would move soft tokens by more than their norm.

    Args:
        in_dim: Width of a fused vector, K.
        lm_dim: Width of the LM's input embeddings, H.
        hidden_dim: Width of the encoder.
        layers: Encoder layers.
        heads: Attention heads.
        max_history: Longest history. Positions are counted back from the latest interaction.
    """

    version = 3  # 1 did not divide, 2 had a gate
    per_interaction = False

    def __init__(
        self, in_dim: int, lm_dim: int, *, hidden_dim: int, layers: int, heads: int, max_history: int = 50
    ) -> None:
        super().__init__(in_dim, lm_dim)
        if hidden_dim % heads:
            raise ValueError(f"adapter.hidden_dim={hidden_dim} is not a multiple of adapter.heads={heads}.")
        self.inward = nn.Linear(in_dim, hidden_dim)
        self.positions = nn.Parameter(0.02 * torch.randn(max_history, hidden_dim))
        layer = nn.TransformerEncoderLayer(
            hidden_dim, heads, 4 * hidden_dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(hidden_dim), enable_nested_tensor=False)
        self.outward = nn.Linear(hidden_dim, lm_dim, bias=False)
        nn.init.zeros_(self.outward.weight)
        self.skip = nn.Linear(in_dim, lm_dim)

    def forward(
        self, fused: Float[Tensor, "batch history in_dim"], mask: Bool[Tensor, "batch history"]
    ) -> Float[Tensor, "batch history lm_dim"]:
        states = self.inward(fused) + self.positions[-fused.shape[1] :]
        encoded = self.encoder(states, src_key_padding_mask=~mask)
        return self.skip(fused) + self.outward(encoded) / self.outward.in_features

    @torch.no_grad()
    def start_as(self, weight: Float[Tensor, "lm_dim in_dim"], bias: Float[Tensor, " lm_dim"]) -> None:
        _set(self.skip, weight, bias)

    def scale_output(self, factor: float) -> None:
        _scale(self.skip, factor)
        _scale(self.outward, factor)


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


@torch.no_grad()
def _scale(layer: nn.Linear, factor: float) -> None:
    for parameter in layer.parameters():
        parameter.mul_(factor)
