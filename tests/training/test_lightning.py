"""What Lightning and Hydra users expect to turn: Trainer, optimizer, schedule, callbacks, loggers, debugging."""

import dataclasses
import inspect
import json

import lightning as L
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from regen.config.schema import CONF, DECIDED, Trainer
from regen.pipeline import open_run, opened_run, train_and_evaluate
from regen.training.module import NarrativeModule
from regen.training.run import LIMITS

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")
FIELDS = {item.name for item in dataclasses.fields(Trainer)}


def test_every_argument_of_the_trainer_can_be_set_or_is_refused_with_a_reason():
    arguments = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    assert FIELDS | set(DECIDED) == arguments
    assert not FIELDS & set(DECIDED)


def test_defaults_are_those_of_lightning_where_the_config_says_nothing():
    theirs = inspect.signature(L.Trainer.__init__).parameters
    ours = {"max_epochs", "num_sanity_val_steps", "log_every_n_steps", "enable_progress_bar", "enable_model_summary"}
    for item in dataclasses.fields(Trainer):
        if item.default != "???" and item.name not in ours:
            assert item.default == theirs[item.name].default, item.name


def ragged_gradients(small_config, *options):
    """Gradients of the first step, and how many batches it had, on narratives of ragged lengths."""
    seen = []

    class Stop(Exception):
        pass

    def keep(self, optimizer, *_, **__):
        alive(self, optimizer)
        seen.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None])
        raise Stop

    alive = NarrativeModule.configure_gradient_clipping
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Stop):
        patched.setattr(NarrativeModule, "configure_gradient_clipping", keep)
        train_and_evaluate(small_config(*options, "trainer.gradient_clip_val=0"))
    return seen[0]


def test_accumulated_gradients_are_those_of_the_larger_batch(small_config, tmp_path, monkeypatch):
    from regen.data.datamodule import LengthBatches

    rows = [3, 1, 0, 2]  # their narratives have different lengths, which a mean of means would weigh wrongly
    monkeypatch.setattr(
        LengthBatches, "batches", lambda self: [rows[at : at + self.batch_size] for at in range(0, 4, self.batch_size)]
    )
    monkeypatch.setattr(LengthBatches, "__len__", lambda self: 4 // self.batch_size if self.shuffle else 1)
    common = ["feature=long_user_summary", "trainer.max_epochs=1"]
    whole = ragged_gradients(small_config, *common, "training.batch_size=4", f"paths.runs_dir={tmp_path}/whole")
    parts = ragged_gradients(
        small_config,
        *common,
        "training.batch_size=1",
        "trainer.accumulate_grad_batches=4",
        f"paths.runs_dir={tmp_path}/parts",
    )
    assert len(whole) == len(parts) > 3
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow  # five trainings
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_run_that_accumulates_and_is_killed_reaches_the_same_weights(small_config, tmp_path, monkeypatch):
    from test_run import Killed, die_at, same_run

    options = ["trainer.accumulate_grad_batches=3", "trainer.max_epochs=2", "training.checkpoint_seconds=0"]
    whole, _ = train_and_evaluate(small_config(*options))
    killed = small_config(*options, f"paths.runs_dir={tmp_path}/killed")
    for step in (1, 4, 6):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            die_at(step, patched)
            train_and_evaluate(killed)
    same_run(whole, train_and_evaluate(killed)[0])


@pytest.mark.parametrize(
    "options",
    [
        ["optimizer=adafactor"],
        ["optimizer=schedule_free", "scheduler=constant"],
        ["optimizer._target_=torch.optim.NAdam"],
        ["scheduler=cosine"],
        ["scheduler=constant"],
        ["trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=0.01"],
        ["trainer.profiler=simple", "trainer.enable_model_summary=true"],
        ["~callbacks.early_stopping"],
        ["~callbacks.checkpoint"],
        ["logger=[]"],
        ["logger=[csv,tensorboard]"],
        ["+logger.mine._target_=lightning.pytorch.loggers.CSVLogger"],
        ["trainer.max_time=00:01:00:00"],
    ],
    ids=" ".join,
)
@pytest.mark.slow  # each of some 15 choices trains a run
def test_a_choice_trains_and_is_scored(small_config, options, capsys):
    folder, best = train_and_evaluate(small_config(*options, "tuning=lora", without="tuning"))
    assert (folder / "scores.json").is_file()
    record = json.loads((folder / "run.json").read_text())
    assert record["steps"] > 0
    assert (best > 0) or options == ["~callbacks.checkpoint"]


DEBUG = sorted(path.stem for path in (CONF / "debug").glob("*.yaml"))


@pytest.mark.parametrize("name", DEBUG)
@pytest.mark.slow  # trains a run for each of four
def test_a_debugging_run_is_trained_and_scored_and_never_taken_for_a_finished_one(small_config, name):
    config = small_config(f"debug={name}", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1")
    folder, _ = train_and_evaluate(config)
    first = (folder / "scores.json").stat().st_mtime_ns
    limits = json.loads((folder / "run.json").read_text())["limits"]
    assert limits
    assert set(limits) <= {f"trainer.{limit}={getattr(config.trainer, limit)}" for limit in LIMITS}
    assert train_and_evaluate(config)[0] == folder
    assert (folder / "scores.json").stat().st_mtime_ns > first, "it was reused"
    with (
        pytest.raises(ValueError, match=r"trained with trainer\.\w+=.*for debugging. Train it without"),
        opened_run(folder),
    ):
        pass
    assert folder != open_run(small_config()).folder


@pytest.mark.slow  # trains until the loss is near zero
def test_a_model_overfits_the_same_batches(small_config):
    """What `debug=overfit` is for: the loss falls far below that of the start."""
    options = ["debug=overfit", "trainer.log_every_n_steps=1", "tuning.lr=0.01"]
    folder, _ = train_and_evaluate(small_config(*options))
    rows = pl.read_csv(next(folder.rglob("metrics.csv")))["train_loss"].drop_nulls()
    assert rows.len() == 100
    assert rows[-1] < 0.5 * rows[0]


def test_narratives_are_written_at_each_validation_and_can_be_monitored(small_config, monkeypatch):
    options = ["training.narratives_at_validation=3", "training.monitor=val_similarity", "training.mode=max"]
    folder, best = train_and_evaluate(small_config(*options, "logger=[csv,tensorboard]", "trainer.max_epochs=2"))
    rows = pl.read_csv(next(folder.rglob("metrics.csv")))
    assert best == pytest.approx(rows["val_similarity"].max())
    for name in ("need_recovery", "trait_recovery", "bleu", "empty"):
        assert rows[f"val_{name}"].drop_nulls().len() == 4
    record = json.loads((folder / "run.json").read_text())
    assert record["monitored"] == best != record["val_loss"]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(folder.rglob("events.out.tfevents*")).parent)).Reload()
    (tag,) = events.Tags()["tensors"]
    assert tag.startswith("validation_narratives")
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
    assert len(texts) == 4
    assert all(text.count("\n") == 4 and "| prediction |" in text for text in texts)


@pytest.mark.slow  # trains twice
def test_narratives_at_validation_do_not_change_what_is_learned(small_config):
    """With dropout: they leave the random numbers of training alone."""
    dropout = ["tuning=lora", "tuning.dropout=0.5", "trainer.max_epochs=2"]
    folder, _ = train_and_evaluate(small_config(*dropout, without="tuning"))
    before = load_file(folder / "model.safetensors")
    with_texts = small_config(*dropout, "training.narratives_at_validation=2", "force=true", without="tuning")
    assert train_and_evaluate(with_texts)[0] == folder
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
