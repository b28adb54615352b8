"""Frozen linear layers in 4 bits as in QLoRA (Dettmers et al. 2023): bitsandbytes' NF4 with double quantisation."""

from typing import Any

import torch
from torch import nn


def to_four_bits(decoder: nn.Module) -> None:
    """Replaces the frozen linear layers of an LM's decoder by 4-bit ones.

    LoRA's own layers and layers on the meta device stay. An LM that shares the weights is not changed.

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
    """The frozen linear layers of an LM's decoder."""
    return [m for m in decoder.modules() if type(m) is nn.Linear and not m.weight.requires_grad]


def from_four_bits(model: nn.Module) -> None:
    """Replaces 4-bit layers by ordinary linear layers with the dequantised weights."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if is_four_bits(child):
                setattr(module, name, _ordinary(child))


def is_four_bits(module: nn.Module) -> bool:
    """Whether a layer is a 4-bit one."""
    own = dict(module.named_parameters(recurse=False))  # a LoRA layer also exposes the weight of its base layer
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
    new.support_avx512bf16_for_cpu = False  # else it repacks its weights in place, for some widths
    quantised: nn.Module = new.to(layer.weight.device)  # quantises
    return quantised


def _ordinary(layer: Any) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    with torch.device("meta"):
        new = nn.Linear(layer.in_features, layer.out_features, bias=False)
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)
    new.weight = nn.Parameter(weight, requires_grad=False)
    new.bias = layer.bias
    return new
