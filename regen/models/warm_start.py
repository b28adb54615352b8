"""Initialises an adapter: at the scale of the LM's embeddings and, with `adapter.init=ridge`, as a ridge regression.

The warm start is ours, not the paper's. Each run computes it from its own input vectors and training narratives, so no
information passes from one encoder to another.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from regen.models.adapter import Adapter


def ridge_map(
    inputs: Float[Tensor, "examples in_dim"], targets: Float[Tensor, "examples lm_dim"], *, strength: float
) -> tuple[Float[Tensor, "lm_dim in_dim"], Float[Tensor, " in_dim"]]:
    """Ridge regression of centred targets on centred inputs.

    Args:
        inputs: Mean fused vector of each training history.
        targets: Mean LM input embedding of each narrative's tokens.
        strength: Penalty, as a multiple of the inputs' mean variance.

    Returns:
        The weight and the inputs' mean; the map is `weight @ (x - mean)`.
    """
    mean = inputs.mean(dim=0)
    x, y = (inputs - mean).double(), (targets - targets.mean(dim=0)).double()
    covariance = x.T @ x / len(x)
    penalty = strength * covariance.diagonal().mean().clamp_min(1e-12)
    eye = torch.eye(len(covariance), dtype=torch.float64)
    weight = torch.linalg.solve(covariance + penalty * eye, x.T @ y / len(x)).T
    return weight.float(), mean


@torch.no_grad()
def initialise(
    adapter: Adapter,
    *,
    ridge: float | None,
    inputs: Float[Tensor, "examples in_dim"],
    targets: Float[Tensor, "examples lm_dim"],
    interactions: Float[Tensor, "interactions in_dim"],
    norm: float,
) -> None:
    """Initialises an adapter in place; its soft tokens get the mean norm `norm` over `interactions`.

    Args:
        adapter: The adapter.
        ridge: Penalty of `ridge_map`, whose map the adapter starts as; None keeps the layers' random start.
        inputs: Mean fused vector of each training history.
        targets: Mean LM input embedding of each training narrative.
        interactions: Fused vectors of single interactions.
        norm: Mean norm of the LM's input embeddings.
    """
    if ridge is not None:
        weight, mean = ridge_map(inputs, targets, strength=ridge)
        adapter.start_as(weight, -weight @ mean)
    rows = interactions[:, None]
    soft = adapter(rows, torch.ones(rows.shape[:2], dtype=torch.bool))
    adapter.scale_output(norm / float(soft.norm(dim=-1).mean().clamp_min(1e-12)))
