"""Linear layers whose weights are packed once for oneDNN's matrix products on a CPU.

By default PyTorch packs a float32 weight in every call. `torch.compile` avoids this for frozen weights; this module
does it without compiling, and with a second copy for the gradient of the layer's input. Results differ by rounding
only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

PACKED_BYTES = 4 << 30  # largest size of all copies together


@contextmanager
def packed_weights(model: nn.Module, *, backward: bool) -> Iterator[None]:
    """Makes the linear layers of a float32 model on a CPU use packed copies of their weights inside the block.

    On other devices, and if the copies would exceed `PACKED_BYTES`, nothing is packed.

    Args:
        model: The model; its packed weights must not change inside the block.
        backward: Whether gradients are needed. Only frozen layers are packed then, with two copies each.
    """
    with restored(pack_weights(model, backward=backward)):
        yield


@contextmanager
def restored(layers: list[nn.Linear]) -> Iterator[None]:
    """Restores the layers' own `forward` at the end of the block."""
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def pack_weights(model: nn.Module, *, backward: bool) -> list[nn.Linear]:
    """Packs weights as `packed_weights` does, and returns the packed layers."""
    layers = [module for module in model.modules() if type(module) is nn.Linear and _packable(module, backward)]
    if sum(layer.weight.nbytes for layer in layers) * (2 if backward else 1) > PACKED_BYTES:
        return []
    for layer in layers:
        vars(layer)["forward"] = PackedLinear(layer, backward=backward)
    return layers


def _packable(layer: nn.Linear, backward: bool) -> bool:
    weight = layer.weight
    frozen = not any(parameter.requires_grad for parameter in layer.parameters())
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and "forward" not in vars(layer)  # narrowed, or packed already
        and type(weight) is nn.Parameter  # not a shard
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and (frozen or not backward)
    )


class PackedLinear:
    """Replaces the `forward` of a layer."""

    def __init__(self, layer: nn.Linear, *, backward: bool) -> None:
        self.layer = layer
        weight = layer.weight.detach()
        self.packed = _pack(weight)
        self.packed_back = _pack(weight.t().contiguous()) if backward else None

    def __call__(self, rows: Float[Tensor, "*rows in_dim"]) -> Float[Tensor, "*rows out_dim"]:
        elsewhere = rows.device.type != "cpu"  # the layer was moved to a GPU
        if elsewhere or rows.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(rows, self.layer.weight, self.layer.bias)
        if self.packed_back is not None and torch.is_grad_enabled() and rows.requires_grad:
            product: Tensor = _Product.apply(rows, self)  # type: ignore[no-untyped-call]
            return product
        return _product(rows, self.packed, self.layer.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, packed: PackedLinear) -> Tensor:
        ctx.packed_back = packed.packed_back
        return _product(rows, packed.packed, packed.layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _product(grads[0], ctx.packed_back, None), None


def _pack(weight: Float[Tensor, "out_dim in_dim"]) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def _product(
    rows: Float[Tensor, "*rows in_dim"], packed: Tensor, bias: Tensor | None
) -> Float[Tensor, "*rows out_dim"]:
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
