"""Frozen linear layers in 4 bits, as in QLoRA (Dettmers et al. 2023): NF4, scales quantised too, by bitsandbytes."""

from typing import Any

import torch
from torch import nn


def to_four_bits(decoder: nn.Module) -> None:
    """Puts 4-bit layers in the place of the frozen linear layers of an LM's decoder; LoRA's own layers stay.

    Weights on the meta device are left as they are. A pristine LM that shares the weights stays as it is.

    Raises:
        ValueError: If there is no frozen linear layer.
    """
    layers = set(frozen_layers(decoder))
    if not layers:
        raise ValueError("tuning=qlora: this LM has no frozen nn.Linear layers to hold in 4 bits. Use tuning=lora.")
    for module in list(decoder.modules()):
        for name, child in list(module.named_children()):
            if child in layers and not child.weight.is_meta:
                setattr(module, name, _four_bits(child))


def frozen_layers(decoder: nn.Module) -> list[nn.Linear]:
    """The linear layers of an LM's decoder that do not train."""
    return [m for m in decoder.modules() if type(m) is nn.Linear and not m.weight.requires_grad]


def from_four_bits(model: nn.Module) -> None:
    """Puts ordinary linear layers in the place of 4-bit ones, with the values that these stand for."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if is_four_bits(child):
                setattr(module, name, _ordinary(child))


def is_four_bits(module: nn.Module) -> bool:
    """Whether a layer is held in 4 bits."""
    own = dict(module.named_parameters(recurse=False))  # LoRA's layers show the weight of the one inside as theirs
    return hasattr(own.get("weight"), "quant_state")


def _four_bits(layer: nn.Linear) -> nn.Module:
    import bitsandbytes.nn

    narrow: Any = bitsandbytes.nn
    new = narrow.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
    )
    new.weight = narrow.Params4bit(layer.weight.detach().clone(), requires_grad=False, quant_type="nf4", module=new)
    new.bias = layer.bias
    new.support_avx512bf16_for_cpu = False  # else it packs its weights anew in place, for layers of some widths only
    quantised: nn.Module = new.to(layer.weight.device)  # which is where it quantises
    return quantised


def _ordinary(layer: Any) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    with torch.device("meta"):
        new = nn.Linear(layer.in_features, layer.out_features, bias=False)
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)
    new.weight = nn.Parameter(weight, requires_grad=False)
    new.bias = layer.bias
    return new
