"""Weights of 8 bits: near the layer's own result, the same whatever stands beside a row, gone afterwards."""

import pytest
import torch
from small import needs_vnni
from test_packed_weights import model, packed_layers  # noqa: F401
from test_soft_token_lm import make_batch
from torch import nn

from regen.generation.row_decoder import RowDecoder
from regen.runtime.narrow_weights import NarrowLinear, narrow_weights
from regen.runtime.packed_weights import packed_weights


def written(model):  # noqa: F811
    decoder = RowDecoder(model, slots=3, length=20, stop_ids=())
    tokens = decoder.add(make_batch([1, 4, 2], [3, 2, 5], [1, 1, 1]), range(3), [6] * 3)
    while decoder.keys:
        tokens += decoder.step()
    return [[token.id for token in tokens if token.key == row] for row in range(3)]


@needs_vnni
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_off_by_a_percent_or_so_and_rows_do_not_disturb_each_other(bias):
    torch.manual_seed(0)
    layer = nn.Linear(96, 64, bias=bias)
    rows = torch.randn(2, 5, 96)
    rows[0, 1] *= 1000  # with one scale for all rows the others would be rounded to nothing
    rows[1, 2] = 0
    narrow = NarrowLinear(layer)
    with torch.no_grad():
        ours, exact = narrow(rows), layer(rows)
    assert ((ours - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(1e-6)).max() < 0.03
    alone = torch.stack([torch.stack([narrow(row[None])[0] for row in some]) for some in rows])
    assert torch.equal(alone, ours)
    assert torch.equal(narrow(rows.permute(1, 0, 2)).permute(1, 0, 2), ours)


@needs_vnni
def test_decoding_inside_uses_8_bits_in_all_but_lora_and_leaves_the_model_as_it_was(model):  # noqa: F811
    before = written(model)
    with narrow_weights(model.lm, "int8"), packed_weights(model.lm, backward=False):
        stand_ins = [type(vars(layer)["forward"]).__name__ for layer in packed_layers(model)]
        assert stand_ins.count("NarrowLinear") == 2 * 7 + 1  # two decoder layers and the head
        assert stand_ins.count("PackedLinear") == 2 * 2 * 2  # LoRA's, which are in no other precision
        inside = written(model)
        assert inside == written(model)
    assert not packed_layers(model)
    assert written(model) == before
    with narrow_weights(model.lm, None):
        assert not packed_layers(model)


def test_a_machine_or_device_that_is_none_for_it_is_refused(monkeypatch):
    layer = nn.Linear(6, 4)
    with pytest.raises(ValueError, match=r"int8 is for a CPU; this model is on meta\. Leave it out"):
        narrow_weights(layer.to("meta"), "int8").__enter__()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match="int8 needs a CPU with VNNI, which this one lacks"):
        narrow_weights(nn.Linear(6, 4), "int8").__enter__()
