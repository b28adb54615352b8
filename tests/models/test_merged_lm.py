"""The folder that a server without our LoRA loads."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from regen.generation.merged_lm import merged_folder, weights_fingerprint
from regen.models.language_model import add_lora
from regen.models.soft_token_lm import SoftTokenLM


def tuned_with(add, lm):
    """A tuned copy of an LM, with updates that are not zero."""
    base = lm.working_copy(trainable=False).model
    torch.manual_seed(0)
    lora = add(base, rank=4, alpha=8.0, dropout=0.0, target_modules=["q_proj", "v_proj"])
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    return lora.eval()


@pytest.fixture
def tuned(tiny_lm, monkeypatch, tmp_path):
    monkeypatch.setenv("REGEN_CACHE", str(tmp_path))
    return SoftTokenLM(tuned_with(add_lora, tiny_lm), None).eval()


@torch.no_grad()
def test_a_merged_folder_says_what_the_tuned_lm_says(tuned, tiny_lm, tmp_path):
    before = weights_fingerprint(tuned.lm)
    folder = merged_folder(tuned, tiny_lm.tokenizer, name="run")
    assert folder.parent == tmp_path / "lm"
    assert folder.name == f"run-merged-{before}"
    assert weights_fingerprint(tuned.lm) == before
    embeds = torch.randn(2, 5, tiny_lm.width)
    logits = tuned.lm(inputs_embeds=embeds).logits
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(merged(inputs_embeds=embeds).logits, logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tiny_lm.model(inputs_embeds=embeds).logits, logits, atol=1e-2)


def test_it_is_written_once_and_other_weights_are_another_folder(tuned, tiny_lm):
    folder = merged_folder(tuned, tiny_lm.tokenizer, name="run")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert merged_folder(tuned, tiny_lm.tokenizer, name="run") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    with torch.no_grad():
        next(p for name, p in tuned.named_parameters() if "lora_B" in name).add_(1)
    assert merged_folder(tuned, tiny_lm.tokenizer, name="run") != folder
    assert not list(folder.parent.glob(".*partial*"))


def test_an_lm_without_lora_is_written_as_it_is(tiny_lm, monkeypatch, tmp_path):
    monkeypatch.setenv("REGEN_CACHE", str(tmp_path))
    folder = merged_folder(SoftTokenLM(tiny_lm.model, None), tiny_lm.tokenizer, name="frozen")
    written = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in tiny_lm.model.state_dict().items())
