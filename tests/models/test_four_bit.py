"""QLoRA: frozen layers in 4 bits, on a CPU here."""

import pytest
import torch
from test_merged_lm import tuned_with
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from regen.generation.merged_lm import merged_folder
from regen.models.four_bit import from_four_bits, is_four_bits
from regen.models.language_model import add_lora, add_qlora, hold_frozen_in_bfloat16, load_tiny
from regen.models.soft_token_lm import SoftTokenLM

pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")


@pytest.fixture(scope="module")
def lm():
    """As wide as a block of the format; bitsandbytes rounds narrower rows badly on a CPU."""
    return load_tiny("tiny", width=64, layers=2, heads=2, seed=0)


@torch.no_grad()
def test_the_frozen_layers_lie_in_four_bits_and_stand_for_nearly_the_same(lm):
    before = lm.weights_digest()
    plain, narrow = tuned_with(add_lora, lm), tuned_with(add_qlora, lm)
    assert lm.weights_digest() == before
    right = {name: layer.weight for name, layer in plain.named_modules() if type(layer) is nn.Linear}
    layers = {name: layer for name, layer in narrow.named_modules() if is_four_bits(layer)}
    assert len(layers) == 7 * lm.layers
    assert all(layer.weight.nbytes == right[name].nbytes / 8 for name, layer in layers.items())
    hold_frozen_in_bfloat16(narrow)
    assert {(layer.weight.dtype, layer.compute_dtype) for layer in layers.values()} == {(torch.uint8, torch.bfloat16)}
    from_four_bits(narrow)
    for name in layers:
        got = narrow.get_submodule(name).weight
        assert 0.02 < (got - right[name]).norm() / right[name].norm() < 0.15


@torch.no_grad()
def test_it_is_merged_with_the_values_that_the_bits_stand_for(lm, monkeypatch, tmp_path):
    monkeypatch.setenv("REGEN_CACHE", str(tmp_path))
    narrow = tuned_with(add_qlora, lm)
    embeds = torch.randn(2, 5, lm.width)
    right = narrow(inputs_embeds=embeds).logits
    merged = AutoModelForCausalLM.from_pretrained(merged_folder(SoftTokenLM(narrow, None), lm.tokenizer, name="run"))
    torch.testing.assert_close(merged(inputs_embeds=embeds).logits, right, atol=1e-4, rtol=1e-4)
    assert any(is_four_bits(m) for m in narrow.modules())
    from_four_bits(narrow)
    torch.testing.assert_close(narrow(inputs_embeds=embeds).logits, right, atol=1e-4, rtol=1e-4)


def test_an_lm_without_such_layers_is_refused():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20))
    with pytest.raises(ValueError, match="this LM has no frozen nn.Linear layers to hold in 4 bits. Use tuning=lora"):
        add_qlora(gpt2, rank=2, alpha=4.0, dropout=0.0)
