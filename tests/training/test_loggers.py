"""Loggers: W&B is closed even when a cell fails (what it logs: test_wandb_records.py), CSV and TensorBoard files."""

import polars as pl
import pytest
import wandb
from wandb_files import offline_files

from regen.pipeline import train_and_evaluate
from regen.training.module import NarrativeModule

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")
WANDB = ["logger=wandb", "logger.wandb.offline=true", "trainer.max_epochs=2"]


@pytest.mark.slow  # W&B starts twice
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_mlflow_keeps_losses_and_scores_beside_the_runs(small_config, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder, _ = train_and_evaluate(small_config("logger=[csv,mlflow]"))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("regen").experiment_id])
    assert run.info.run_name == folder.name
    assert {"val_loss", "test/purchase_reason/bleu"} <= run.data.metrics.keys()


def test_texts_of_a_validation_go_to_wandb_as_a_table():
    from regen.evaluation.at_validation import TABLE, _send

    class WandbLogger:
        def log_table(self, key, columns, data):
            sent.append((key, columns, data))

    sent = []
    _send([WandbLogger()], pl.DataFrame({"user_id": ["u"], "prediction": ["Needs a pen."]}), step=3)
    assert sent == [(TABLE, ["user_id", "prediction"], [["u", "Needs a pen."]])]
