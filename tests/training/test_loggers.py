"""Loggers: W&B offline gets a plain config, losses and a table of narratives, and is closed even when a cell fails."""

import json

import pytest
import wandb
from wandb_files import offline_files, read_offline

from regen.grid import train_and_evaluate
from regen.training.module import NarrativeModule

WANDB = ["logger=wandb", "logger.offline=true", "training.epochs=2"]


def test_wandb_offline_holds_config_losses_and_narratives(small_config):
    folder, loss = train_and_evaluate(small_config(*WANDB))
    assert wandb.run is None  # closed, so that the next cell starts a run of its own
    logged = read_offline(folder)
    assert logged.config["encoder"] == {"name": "cf"}
    assert logged.config["training"]["epochs"] == 2
    assert len(logged.history["train_loss"]) >= 1
    assert min(logged.history["val_loss"]) == pytest.approx(loss)
    assert "test/purchase_reason/bleu" in logged.history
    assert any(key.startswith("narratives") for key in logged.history)
    (table,) = folder.rglob("offline-run-*/files/media/table/narratives*.json")
    content = json.loads(table.read_text())
    assert {"user_id", "prediction", "reference"} <= set(content["columns"])
    assert len(content["data"]) == len((folder / "predictions.jsonl").read_text().splitlines()) >= 10


def test_wandb_is_closed_when_a_cell_fails(small_config, monkeypatch):
    def fail(self, batch, batch_idx):
        raise RuntimeError("a cell that fails")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="a cell that fails"):
        patched.setattr(NarrativeModule, "training_step", fail)
        train_and_evaluate(small_config(*WANDB))
    assert wandb.run is None
    one, _ = train_and_evaluate(small_config(*WANDB, "seed=1"))
    other, _ = train_and_evaluate(small_config(*WANDB, "seed=2"))
    assert len(offline_files(one)) == len(offline_files(other)) == 1


def test_tensorboard_writes_event_files(small_config):
    folder, _ = train_and_evaluate(small_config("logger=tensorboard", "trainer.max_steps=2"))
    assert list(folder.rglob("events.out.tfevents*"))


def test_csv_holds_losses(small_config):
    folder, loss = train_and_evaluate(small_config())
    text = next(folder.rglob("metrics.csv")).read_text()
    assert "train_loss" in text
    assert "val_loss" in text
    assert loss > 0
