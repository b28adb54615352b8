"""Runs as artefacts: resume reaches the same weights, finished ones are reused, damage is named."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from regen import pipeline
from regen.config.objects import Component
from regen.data.tables import DataError
from regen.models.language_model import load_pretrained, load_tiny
from regen.models.soft_token_lm import SoftTokenLM
from regen.pipeline import train_and_evaluate
from regen.training import run as runs
from regen.training.callbacks import LastCheckpoint
from regen.training.module import NarrativeModule

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")


class Killed(Exception):
    pass


def die_at(step, monkeypatch):
    """Makes training stop as by a kill once the given step begins."""
    alive = NarrativeModule.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            raise Killed
        return alive(self, batch, batch_idx)

    monkeypatch.setattr(NarrativeModule, "training_step", training_step)


def die_in_validation(number, monkeypatch):
    """Makes training stop as by a kill in the validation of a number, counted from 1."""
    alive, seen = NarrativeModule.on_validation_epoch_end, []

    def on_validation_epoch_end(self):
        seen.append(self.global_step)
        if len(seen) == number:
            raise Killed
        alive(self)

    monkeypatch.setattr(NarrativeModule, "on_validation_epoch_end", on_validation_epoch_end)


SHORT = ["trainer.max_epochs=2", "training.batch_size=32", "training.checkpoint_seconds=0", "tuning=lora"]


def same_run(whole, other):
    """Whether two runs have the same weights, best loss and number of steps."""
    expected, got = load_file(whole / "model.safetensors"), load_file(other / "model.safetensors")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    records = [json.loads((folder / "run.json").read_text()) for folder in (whole, other)]
    assert records[0]["steps"] == records[1]["steps"]
    assert records[0]["val_loss"] == records[1]["val_loss"]


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("encoder", ["cf", pytest.param("noise", marks=pytest.mark.slow)])  # the same way twice
def test_a_run_killed_at_every_step_and_validation_reaches_the_same_weights(
    small_config, tmp_path, monkeypatch, encoder
):
    """One run dies at each step and in each validation in turn, and goes on from there each time."""
    options = [*SHORT, f"encoder={encoder}", *(["encoder.dim=16"] if encoder == "noise" else [])]
    monkeypatch.setattr("regen.evaluation.evaluate.evaluate_run", lambda *_, **__: None)
    monkeypatch.setattr("regen.training.run.load", lambda run: None)
    whole, _ = train_and_evaluate(small_config(*options))
    steps = json.loads((whole / "run.json").read_text())["steps"]
    assert steps == 4
    killed = small_config(*options, f"paths.runs_dir={tmp_path}/killed")
    for step in range(1, steps):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            die_at(step, patched)
            train_and_evaluate(killed)
    folder = train_and_evaluate(killed)[0]
    same_run(whole, folder)
    in_validation = small_config(*options, f"paths.runs_dir={tmp_path}/in_validation")
    for _ in range(2):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            die_in_validation(2, patched)
            train_and_evaluate(in_validation)
    folder = train_and_evaluate(in_validation)[0]
    same_run(whole, folder)
    clock = json.loads((folder / "run.json").read_text())
    assert 0 < clock["costs"]["step_ms"] * clock["steps"] / 1000 <= clock["seconds"] + 0.1


def test_the_time_of_a_step_is_without_checkpoints(small_config, monkeypatch):
    clock, save = [0.0], LastCheckpoint._save_checkpoint

    def slow_save(self, trainer, path):
        clock[0] += 1000
        save(self, trainer, path)

    def training_step(self, batch, batch_idx):
        clock[0] += 2
        return step(self, batch, batch_idx)

    step = NarrativeModule.training_step
    monkeypatch.setattr("regen.training.callbacks.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(LastCheckpoint, "_save_checkpoint", slow_save)
    monkeypatch.setattr(NarrativeModule, "training_step", training_step)
    folder, _ = train_and_evaluate(small_config("training.checkpoint_seconds=0", "trainer.max_steps=3"))
    record = json.loads((folder / "run.json").read_text())
    assert record["costs"]["step_ms"] == 2000
    assert record["seconds"] >= 3006


@pytest.mark.parametrize("rate", ["adapter.lr=3e37", "tuning.lr=1e30"])
def test_a_loss_that_is_not_finite_ends_the_run(small_config, tmp_path, rate):
    cfg = small_config(rate, "training.checkpoint_seconds=0")
    with pytest.raises(ValueError, match=r"step \d+ .*not finite; adapter.lr=.*precision=32-true, last good step \d+"):
        train_and_evaluate(cfg)
    (folder,) = (tmp_path / "runs").glob("p*")
    assert not (folder / "model.safetensors").exists()
    assert not (folder / "scores.json").exists()


def test_a_validation_loss_that_is_not_finite_ends_the_run(small_config, monkeypatch):
    alive = SoftTokenLM.forward

    def forward(self, batch):
        loss, tokens = alive(self, batch)
        return (loss if self.training else loss * torch.nan), tokens

    monkeypatch.setattr(SoftTokenLM, "forward", forward)
    with pytest.raises(ValueError, match=r"The validation loss after step \d+ is inf"):
        train_and_evaluate(small_config())


def test_a_run_without_a_step_is_an_error(small_config, tmp_path):
    with pytest.raises(ValueError, match=r"ended without a single step, .* Raise trainer.limit_train_batches=0"):
        train_and_evaluate(small_config("trainer.limit_train_batches=0"))
    assert not list((tmp_path / "runs").glob("*/model.safetensors"))


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_a_run_without_a_validation_is_no_finished_run(small_config):
    run = pipeline.open_run(small_config("trainer.limit_val_batches=0", "trainer.max_steps=1"))
    assert run.limits == ["trainer.limit_val_batches=0"]
    assert pipeline.open_run(small_config("trainer.limit_val_batches=1.0")).limits == []


def test_weights_that_are_not_finite_are_not_saved(small_config, tmp_path, monkeypatch):
    alive, bias = SoftTokenLM.load_trained_state, "adapter.projection.bias"
    monkeypatch.setattr(
        SoftTokenLM, "load_trained_state", lambda self, state: alive(self, {**state, bias: state[bias] * torch.nan})
    )
    with pytest.raises(
        ValueError, match=r"1 of \d+ trained tensors are not finite, the first is adapter.projection.bias"
    ):
        train_and_evaluate(small_config())
    assert not list((tmp_path / "runs").glob("*/model.safetensors"))


@pytest.mark.parametrize(
    ("variables", "main"),
    [
        ({}, True),
        ({"SLURM_PROCID": "1"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
    ],
)
def test_only_rank_zero_is_the_main_process(monkeypatch, variables, main):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runs.is_main_process() == main


def test_same_seed_same_loss_and_another_seed_another(small_config, tmp_path):
    first = train_and_evaluate(small_config("score=false"))[1]
    again = train_and_evaluate(small_config("score=false", f"paths.runs_dir={tmp_path}/again"))[1]
    other = train_and_evaluate(small_config("score=false", "seed=1"))[1]
    assert first == again
    assert first != other


def test_an_lm_is_loaded_in_float32_whatever_the_machine_has(tiny_lm, tmp_path, monkeypatch):
    tiny_lm.model.save_pretrained(tmp_path)
    tiny_lm.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    lm = load_pretrained("mine", pretrained=str(tmp_path))
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_in_bf16_mixed_what_trains_stays_float32(small_config, monkeypatch, tuning):
    seen, step = {}, NarrativeModule.training_step

    def training_step(self, batch, batch_idx):
        for parameter in self.model.lm.parameters():
            seen.setdefault(parameter.requires_grad, set()).add(parameter.dtype)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(NarrativeModule, "training_step", training_step)
    options = [
        "score=false",
        "trainer.precision=bf16-mixed",
        "trainer.max_steps=10",
        f"tuning={tuning}",
        "tuning.lr=0.00002",
    ]
    cfg = small_config(*options, without="tuning")
    folder, _ = train_and_evaluate(cfg)
    pristine = cfg.lm.build().model  # shared by all runs of this process
    assert {parameter.dtype for parameter in pristine.parameters()} == {torch.float32}
    assert seen == ({True: {torch.float32}} | ({} if tuning == "full" else {False: {torch.bfloat16}}))
    if tuning == "full":
        start = load_tiny("tiny", width=32, layers=2, heads=4, seed=0).model.state_dict()
        state = load_file(folder / "model.safetensors")
        moved = [
            (tensor != start[name.removeprefix("lm.")]).float().mean()
            for name, tensor in state.items()
            if "proj" in name and name.startswith("lm.")
        ]
        assert min(moved) > 0.9


@pytest.mark.slow  # bfloat16 on a CPU
def test_the_gpu_settings_in_bf16_reach_the_loss_of_float32(small_config, tmp_path):
    options = ["tuning=lora", "trainer.max_epochs=3", f"paths.runs_dir={tmp_path}/gpu"]
    _, exact = train_and_evaluate(small_config("tuning=lora", "trainer.max_epochs=3"))
    gpu = ["trainer=gpu", "trainer.accelerator=cpu", "training.num_workers=0", "trainer.enable_progress_bar=false"]
    folder, rounded = train_and_evaluate(small_config(*gpu, *options))
    assert rounded != exact, "nothing was computed in bf16"
    assert rounded == pytest.approx(exact, rel=0.01)
    trained = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}


def test_a_finished_run_is_reused_and_force_trains_it_anew(small_config):
    folder, loss = train_and_evaluate(small_config())
    weights = folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert train_and_evaluate(small_config()) == (folder, loss)
    assert weights.stat().st_mtime_ns == before
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"versions": {"torch": "0"}, "stale": 1}))
    assert train_and_evaluate(small_config("force=true")) == (folder, loss)
    again = json.loads((folder / "run.json").read_text())
    assert again["versions"] == record["versions"]
    assert "stale" not in again
    assert weights.stat().st_mtime_ns > before


def test_a_run_of_older_code_is_not_taken_for_this_ones(small_config, monkeypatch):
    folders = [pipeline.open_run(small_config()).folder for _ in range(2)]
    monkeypatch.setattr("regen.models.adapter.LinearAdapter.version", 2)
    folders.append(pipeline.open_run(small_config()).folder)
    assert folders[0] == folders[1] != folders[2]


def test_other_evaluation_settings_score_again_without_training(small_config):
    folder, _ = train_and_evaluate(small_config("trainer.max_steps=3"))
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    scored = (folder / "scores.json").stat().st_mtime_ns
    train_and_evaluate(small_config("trainer.max_steps=3", "evaluation.resamples=101"))
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    assert (folder / "scores.json").stat().st_mtime_ns > scored


def test_checkpoints_hold_what_was_trained_and_its_provenance(small_config, monkeypatch, tmp_path):
    cfg = small_config("training.checkpoint_seconds=0", "tuning=lora")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        die_at(3, patched)
        train_and_evaluate(cfg)
    path = next((tmp_path / "runs").glob("*/checkpoints/last.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    assert all("adapter" in name or "lora" in name for name in checkpoint["state_dict"])
    assert checkpoint["provenance"]["config"]["encoder"]["name"] == "cf"
    assert set(checkpoint["provenance"]["versions"]) >= {"torch", "transformers", "peft"}


def test_a_damaged_checkpoint_is_refused_with_its_path(small_config, monkeypatch, tmp_path):
    cfg = small_config("training.checkpoint_seconds=0")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        die_at(3, patched)
        train_and_evaluate(cfg)
    path = next((tmp_path / "runs").glob("*/checkpoints/last.ckpt"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.ckpt: cannot be read .*force=true"):
        train_and_evaluate(cfg)


def test_damaged_weights_are_refused_with_their_path(small_config):
    cfg = small_config("trainer.max_steps=2")
    folder, _ = train_and_evaluate(cfg)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read .*force=true"):
        pipeline.load_run(pipeline.read_run(folder))


def test_weights_of_another_shape_are_refused(small_config, tmp_path):
    narrow, _ = train_and_evaluate(small_config("trainer.max_steps=1"))
    wide, _ = train_and_evaluate(small_config("trainer.max_steps=1", "cf.model.factors=8"))
    (wide / "model.safetensors").write_bytes((narrow / "model.safetensors").read_bytes())
    with pytest.raises(
        ValueError, match=r"model\.safetensors: .*'adapter.projection.weight' is \(32, 16\) there and \(32, 8\)"
    ):
        pipeline.load_run(pipeline.read_run(wide))


def test_weights_of_another_lm_are_refused(small_config):
    cfg = small_config("trainer.max_steps=1", "tuning=frozen")
    folder, _ = train_and_evaluate(cfg)
    run = pipeline.read_run(folder)
    other = Component({**run.config.lm.node, "width": 16})
    run = replace(run, config=replace(run.config, lm=other))
    with pytest.raises(ValueError, match="does not fit this model"):
        pipeline.load_run(run)


def test_a_run_whose_data_changed_is_refused(small_config):
    folder, _ = train_and_evaluate(small_config("trainer.max_steps=1"))
    record = json.loads((folder / "run.json").read_text())
    record["inputs"]["prepared"] = "0" * 12
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was trained on data"):
        pipeline.read_run(folder)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        pipeline.read_run(tmp_path)


def test_a_narrative_longer_than_the_window_is_named(small_config):
    cfg = small_config("feature=long_user_summary")
    feature = replace(cfg.feature["long_user_summary"], prompt="word " * 500)
    cfg = replace(cfg, feature={"long_user_summary": feature})
    with pytest.raises(
        DataError, match=r"The long_user_summary of user 'u\d+' needs \d+ positions .* the LM reads 512"
    ):
        train_and_evaluate(cfg)


def test_cut_narratives_fit(small_config):
    cfg = small_config("feature=long_user_summary", "data.max_narrative_tokens=5", "trainer.max_steps=1")
    folder, _ = train_and_evaluate(cfg)
    loaded = pipeline.load_run(pipeline.read_run(folder))
    assert {len(target) for target in loaded.data.splits["train"].targets} == {6}


def test_one_model_on_several_features(small_config):
    folder, _ = train_and_evaluate(small_config("feature=[user_profile,purchase_reason]", "trainer.max_steps=1"))
    assert set(json.loads((folder / "scores.json").read_text())) == {"user_profile", "purchase_reason"}


def test_an_unknown_generation_option_is_named(small_config):
    with pytest.raises(ValueError, match=r"generation.top_kk: .*Did you mean 'top_k'"):
        train_and_evaluate(small_config("trainer.max_steps=1", "+evaluation.generation.top_kk=3"))
