"""How an adapter starts: at the LM's own scale, and, with `adapter.init=ridge`, as a closed-form map.

The warm start is ours, not the paper's. It sees training narratives and the cell's own input vectors only, so it is the
same for every encoder and carries nothing from one to another.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from regen.models.adapter import Adapter

Init = Literal["random", "ridge"]


def ridge_map(
    inputs: Float[Tensor, "examples in_dim"], targets: Float[Tensor, "examples lm_dim"], *, strength: float
) -> tuple[Float[Tensor, "lm_dim in_dim"], Float[Tensor, " in_dim"]]:
    """Ridge regression of centred targets on centred inputs.

    Args:
        inputs: Mean fused vector of each training history.
        targets: Mean LM input embedding of each narrative's tokens.
        strength: The penalty as a multiple of the inputs' mean variance.

    Returns:
        The weight and the inputs' mean; the prediction is `weight @ (x - mean)`.
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
    init: Init,
    strength: float,
    inputs: Float[Tensor, "examples in_dim"],
    targets: Float[Tensor, "examples lm_dim"],
    interactions: Float[Tensor, "interactions in_dim"],
    norm: float,
) -> None:
    """Gives the adapter its start, with soft tokens of mean norm `norm` over the given interactions.

    Args:
        adapter: Any adapter; changed in place.
        init: `random` keeps the layers' own start, `ridge` replaces it by `ridge_map`.
        strength: Penalty of `ridge`.
        inputs: Mean fused vector of each training history.
        targets: Mean LM input embedding of each training narrative.
        interactions: Fused vectors of single interactions, on which the scale is taken.
        norm: Mean norm of the LM's input embeddings.
    """
    if init == "ridge":
        weight, mean = ridge_map(inputs, targets, strength=strength)
        adapter.start_as(weight, -weight @ mean)
    rows = interactions[:, None]
    soft = adapter(rows, torch.ones(rows.shape[:2], dtype=torch.bool))
    adapter.scale_output(norm / float(soft.norm(dim=-1).mean().clamp_min(1e-12)))
