"""How much a trained adapter uses CF and content (paper 6).

The linear adapter's soft token is `W_cf e + W_content s + b`, so both parts can be read from its weights. For any
adapter, CF's share can be attributed by gradient times input; `attribution_share` explains how the two relate.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.linalg import subspace_angles
from torch import Tensor

from regen.analysis.adapter_sample import AdapterSample
from regen.models.adapter import Adapter, LinearAdapter


@dataclass(frozen=True)
class Projection:
    """The linear adapter as the paper writes it: `soft = cf @ e + content @ s + bias`."""

    cf: Float[Tensor, "lm_dim cf_dim"]
    content: Float[Tensor, "lm_dim content_dim"]
    bias: Float[Tensor, " lm_dim"]

    def parts(self, fused: Float[Tensor, "sample in_dim"], *, centred: bool = False) -> "Parts":
        """The projected CF and content parts of each interaction.

        Args:
            fused: Fused vectors, CF first.
            centred: Subtract the mean over the sample from both parts. The bias can cancel a mean, which is the same
                for every interaction; the rest distinguishes interactions.
        """
        cf, content = fused[:, : self.cf.shape[1]] @ self.cf.T, fused[:, self.cf.shape[1] :] @ self.content.T
        return Parts(cf - cf.mean(dim=0), content - content.mean(dim=0)) if centred else Parts(cf, content)


@dataclass(frozen=True)
class Parts:
    """The projected CF part `W_cf e` and content part `W_content s` of soft tokens."""

    cf: Float[Tensor, "sample lm_dim"]
    content: Float[Tensor, "sample lm_dim"]

    @property
    def norms(self) -> tuple[Float[Tensor, " sample"], Float[Tensor, " sample"]]:
        """L2 norms of the CF and of the content parts."""
        return self.cf.norm(dim=1), self.content.norm(dim=1)

    @property
    def cosines(self) -> Float[Tensor, " sample"]:
        """Cosine of each CF part with its content part; nan if one of them is zero."""
        return (self.cf * self.content).sum(dim=1) / (self.cf.norm(dim=1) * self.content.norm(dim=1))


def split_projection(adapter: Adapter, cf_dim: int) -> Projection:
    """The CF and content blocks of a linear adapter's weight (paper 6).

    Raises:
        ValueError: If the adapter is not linear.
    """
    if not isinstance(adapter, LinearAdapter):
        raise ValueError(
            f"A {type(adapter).__name__} has no CF and content blocks to read. Give a run with adapter=linear, or use "
            "attribution_share, which works for any adapter."
        )
    weight = adapter.projection.weight.detach()
    return Projection(weight[:, :cf_dim], weight[:, cf_dim:], adapter.projection.bias.detach())


def norm_share(cf: Float[Tensor, "sample dim"], content: Float[Tensor, "sample dim"]) -> Float[Tensor, " sample"]:
    """CF's share of a soft token's norm, |W_cf e| / (|W_cf e| + |W_content s|) (paper 6.2, Figure 6).

    It is between 0 and 1, or nan if both parts are zero.
    """
    return _share(cf.norm(dim=1), content.norm(dim=1))


def attribution_share(
    adapter: Adapter,
    histories: Float[Tensor, "histories length in_dim"],
    mask: Bool[Tensor, "histories length"],
    *,
    rows: Int[Tensor, " sample"],
    positions: Int[Tensor, " sample"],
    cf_dim: int,
    batch_size: int = 64,
) -> Float[Tensor, " sample"]:
    """CF's share of soft tokens by gradient times input, for any adapter.

    The attributed quantity is the projection of a soft token h on its own direction, <h(x), h/|h|>, with h/|h| held
    fixed. Gradient times input is summed over the CF and over the content dimensions of the whole history, because a
    transformer adapter mixes interactions. The share is |A_cf| / (|A_cf| + |A_content|); biases count for neither.

    For the linear adapter A_cf = |W_cf e| cos(W_cf e, h), and likewise for content. So the norm share weighs a part by
    its length, and this share by its length along the soft token. They agree if both parts have the same angle to it.
    With orthogonal parts and no bias this share is |W_cf e|^2 / (|W_cf e|^2 + |W_content s|^2).

    Args:
        adapter: Any adapter.
        histories: Fused vectors, CF first.
        mask: True where `histories` has an interaction.
        rows: For each soft token, the row of its history.
        positions: For each soft token, its position in the history.
        cf_dim: Number of CF dimensions.
        batch_size: Soft tokens per batch.

    Returns:
        Shares between 0 and 1; nan if neither block contributes.
    """
    contributions = [
        _contributions(adapter, histories[row], mask[row], position, cf_dim)
        for row, position in zip(torch.split(rows, batch_size), torch.split(positions, batch_size), strict=True)
    ]
    return _share(*torch.cat(contributions).T)


def cf_shares(sample: AdapterSample) -> dict[str, Float[Tensor, " sample"]]:
    """All measures of CF's share by name: attribution and, for a linear adapter, two norm shares."""
    attributed = attribution_share(
        sample.adapter,
        sample.histories,
        sample.mask,
        rows=sample.rows,
        positions=sample.positions,
        cf_dim=sample.cf_dim,
    )
    if not isinstance(sample.adapter, LinearAdapter):
        return {"attribution": attributed}
    projection = split_projection(sample.adapter, sample.cf_dim)
    parts, centred = projection.parts(sample.fused), projection.parts(sample.fused, centred=True)
    return {
        "norms": norm_share(parts.cf, parts.content),
        "norms, parts centred": norm_share(centred.cf, centred.content),
        "attribution": attributed,
    }


def singular_values(block: Float[Tensor, "lm_dim block_dim"]) -> Float[Tensor, " rank"]:
    """Singular values of a block of the projection, largest first."""
    return torch.linalg.svdvals(block)


def principal_angles(
    first: Float[Tensor, "lm_dim first_dim"], second: Float[Tensor, "lm_dim second_dim"]
) -> Float[np.ndarray, " angles"]:
    """Angles between the column spaces of two blocks in degrees, smallest first; empty if a block is zero.

    Two blocks with more columns together than the LM's width always share directions: compare `chance_angles`.
    """
    if not (first.any() and second.any()):
        return np.empty(0)
    return np.rad2deg(subspace_angles(first.double().numpy(), second.double().numpy()))[::-1]


def chance_angles(projection: Projection, *, seed: int = 0) -> Float[np.ndarray, " angles"]:
    """Principal angles between random blocks of the same shapes, the chance level of `principal_angles`."""
    generator = torch.Generator().manual_seed(seed)
    cf, content = (torch.randn(block.shape, generator=generator) for block in (projection.cf, projection.content))
    return principal_angles(cf, content)


def _share(cf: Float[Tensor, " sample"], content: Float[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    return cf.abs() / (cf.abs() + content.abs())


def _contributions(
    adapter: Adapter,
    histories: Float[Tensor, "tokens length in_dim"],
    mask: Bool[Tensor, "tokens length"],
    positions: Int[Tensor, " tokens"],
    cf_dim: int,
) -> Float[Tensor, "tokens 2"]:
    """Gradient times input of one soft token per history, over the CF and the content dimensions."""
    entering = histories.detach().requires_grad_()
    soft = adapter(entering, mask)[torch.arange(len(histories)), positions]
    along = (soft * torch.nn.functional.normalize(soft.detach(), dim=1)).sum()
    (gradient,) = torch.autograd.grad(along, entering)
    by_dim = (gradient * histories * mask[..., None]).sum(dim=1)
    return torch.stack([by_dim[:, :cf_dim].sum(dim=1), by_dim[:, cf_dim:].sum(dim=1)], dim=1)
