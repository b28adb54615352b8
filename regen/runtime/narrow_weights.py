"""Linear layers in 8 bits for faster decoding on a CPU.

Weights are rounded with a scale per output (absolute maximum over 127) and inputs with a scale per row, as in
LLM.int8() (Dettmers et al. 2022) without its higher-precision part. Sums are of integers, so a row's result does not
depend on the other rows. LoRA's own layers, the adapter, norms and attention are not changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regen.runtime.packed_weights import restored

STEPS = 127  # quantisation steps from zero to the largest value
ZERO = 128  # zero point of the inputs' unsigned bytes
HALF_UP = torch.tensor(ZERO + 0.5)  # 0.5 for rounding, because the conversion to bytes truncates
TINY = torch.finfo(torch.float32).tiny


@contextmanager
def narrow_weights(model: nn.Module, precision: str | None) -> Iterator[None]:
    """Makes the model's linear layers compute in 8 bits inside the block, without gradients.

    Args:
        model: The model; its weights must not change inside the block.
        precision: `int8`, or None to change nothing.

    Raises:
        ValueError: If the model is not on a CPU or this CPU has no VNNI.
    """
    with restored(narrow(model) if precision is not None else []):
        yield


def narrow(model: nn.Module) -> list[nn.Linear]:
    """Makes the model's linear layers compute in 8 bits, and returns these layers.

    Raises:
        ValueError: If the model is not on a CPU or this CPU has no VNNI.
    """
    layers = [module for name, module in model.named_modules() if type(module) is nn.Linear and "lora_" not in name]
    if elsewhere := {layer.weight.device.type for layer in layers} - {"cpu"}:
        raise ValueError(f"precision=int8 is for a CPU; this model is on {', '.join(elsewhere)}. Leave it out.")
    if not torch.cpu._is_vnni_supported():
        raise ValueError("precision=int8 needs a CPU with VNNI, which this one lacks. Leave it out.")
    for layer in layers:
        vars(layer)["forward"] = NarrowLinear(layer)
    return layers


class NarrowLinear:
    """Replaces the `forward` of a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        weight = layer.weight.detach().float()
        self.scales = (weight.abs().amax(dim=1) / STEPS).clamp_min(TINY)
        self.zeros = torch.zeros(len(weight), dtype=torch.int8)
        narrowed = (weight / self.scales[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(narrowed, None)
        self.bias = layer.bias

    def __call__(self, rows: Float[Tensor, "*rows in_dim"]) -> Float[Tensor, "*rows out_dim"]:
        largest = rows.abs().amax(dim=-1, keepdim=True).clamp_min(TINY)
        narrowed = torch.addcmul(HALF_UP, rows, STEPS / largest).to(torch.uint8)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            narrowed.flatten(0, -2), 1 / STEPS, ZERO, self.weight, self.scales, self.zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        product = product.view(*rows.shape[:-1], -1) * largest
        return product if self.bias is None else product + self.bias
