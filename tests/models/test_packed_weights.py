"""Packed weights change neither text, loss nor gradient beyond rounding, and leave the layers as they were."""

import numpy as np
import pytest
import torch
from test_soft_token_lm import K, make_batch
from torch import nn

from regen.models.adapter import LinearAdapter
from regen.models.language_model import add_lora
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime import packed_weights as packing
from regen.runtime.packed_weights import packed_weights

CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture
def model(tiny_lm):
    options = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    lm = add_lora(tiny_lm.working_copy(trainable=False).model, **options)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return SoftTokenLM(lm, LinearAdapter(K, tiny_lm.width), bos_token_id=tiny_lm.tokenizer.bos_token_id)


def packed_layers(model):
    return [module for module in model.modules() if "forward" in vars(module)]


def loss_and_gradients(model):
    loss, tokens = model(make_batch([1, 4, 2], [3, 2, 5], [6, 3, 1]))
    trained = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss / tokens, trained)]


def test_loss_and_gradients_are_unchanged_and_the_layers_too(model):
    plain = loss_and_gradients(model)
    before = model.state_dict()
    with packed_weights(model.lm, backward=True):
        assert len(packed_layers(model)) == 2 * 7 + 1  # two decoder layers and the head, but no LoRA
        packed = loss_and_gradients(model)
    for ours, expected in zip(packed, plain, strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)
    assert not packed_layers(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_with_a_bias_and_rows_that_do_not_lie_together():
    layer = nn.Linear(6, 4).requires_grad_(False)
    rows = torch.randn(6, 5, 3).permute(2, 1, 0).requires_grad_()
    slope = torch.randn(3, 5, 4)
    expected = layer(rows), torch.autograd.grad(layer(rows), rows, slope)[0]
    with packed_weights(layer, backward=True):
        ours = layer(rows), torch.autograd.grad(layer(rows), rows, slope)[0]
    torch.testing.assert_close(ours, expected, **CLOSE)


def test_what_trains_is_packed_for_decoding_alone():
    layer = nn.Linear(6, 4)
    with packed_weights(layer, backward=True):
        assert not packed_layers(layer)
    with torch.no_grad(), packed_weights(layer, backward=False):
        assert packed_layers(layer) == [layer]


def test_a_failure_inside_unpacks():
    layer = nn.Linear(6, 4).requires_grad_(False)
    with pytest.raises(KeyboardInterrupt), packed_weights(layer, backward=True):
        raise KeyboardInterrupt
    assert not packed_layers(layer)


def test_other_dtypes_autocast_and_too_large_an_lm_are_left_alone(monkeypatch):
    layer, rows = nn.Linear(6, 4).requires_grad_(False), torch.randn(3, 6)
    with packed_weights(layer.to(torch.bfloat16), backward=True):
        assert not packed_layers(layer)
    layer.float()
    with packed_weights(layer, backward=True), torch.autocast("cpu", torch.bfloat16):
        assert layer(rows).dtype == torch.bfloat16
    monkeypatch.setattr(packing, "PACKED_BYTES", layer.weight.nbytes)
    with packed_weights(layer, backward=True):
        assert not packed_layers(layer)


def test_a_layer_that_moved_to_another_device_computes_there():
    layer = nn.Linear(6, 4).requires_grad_(False)
    with packed_weights(layer, backward=True):
        assert layer.to("meta")(torch.randn(3, 6, device="meta")).device.type == "meta"


def test_the_sentence_encoder_is_packed_and_gives_what_it_gives_unpacked():
    from sentence_transformers import SentenceTransformer

    from regen.embeddings.content import embed_texts, load_sentence_encoder, minilm_folder

    texts = ["Write smoothly.", "A red stapler that jams. " * 20, "Papier, très blanc"]
    assert any("forward" in vars(module) for module in load_sentence_encoder("minilm").modules())
    plain = SentenceTransformer(minilm_folder()).encode(texts, normalize_embeddings=True)
    assert np.allclose(embed_texts(texts), plain, atol=1e-5)
