"""Loggers: W&B is closed even when a cell fails (what it logs: test_wandb_records.py), CSV and TensorBoard files."""

import pytest
import wandb
from wandb_files import offline_files

from regen.pipeline import train_and_evaluate
from regen.training.module import NarrativeModule

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")
WANDB = ["logger=wandb", "logger.wandb.offline=true", "trainer.max_epochs=2"]


def test_wandb_is_closed_when_a_cell_fails(small_config, monkeypatch):
    def fail(self, batch, batch_idx):
        raise RuntimeError("a cell that fails")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="a cell that fails"):
        patched.setattr(NarrativeModule, "training_step", fail)
        train_and_evaluate(small_config(*WANDB))
    assert wandb.run is None
    folder, _ = train_and_evaluate(small_config(*WANDB, "seed=1"))
    assert len(offline_files(folder)) == 1  # a run of its own


def test_tensorboard_writes_event_files(small_config):
    folder, _ = train_and_evaluate(small_config("logger=tensorboard", "trainer.max_steps=2"))
    assert list(folder.rglob("events.out.tfevents*"))


def test_csv_holds_losses(small_config):
    folder, loss = train_and_evaluate(small_config())
    text = next(folder.rglob("metrics.csv")).read_text()
    assert "train_loss" in text
    assert "val_loss" in text
    assert loss > 0
