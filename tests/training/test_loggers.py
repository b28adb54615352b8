"""Loggers: W&B offline gets a plain config, losses and a table of narratives, and is closed even when a cell fails."""

import json

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from regen.grid import train_and_evaluate
from regen.training.module import NarrativeModule

WANDB = ["logger=wandb", "logger.offline=true", "training.epochs=2"]
BLOCK = 32_768  # an offline file is a LevelDB log: blocks of chunks of checksum (4), length (2), kind (1), content


def records(path):
    """Every record of an offline W&B file."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    at, begun = 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # the rest of a block is filled with zeros
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        begun += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(begun)
            yield record
            begun = b""


def offline_files(folder):
    return sorted(folder.rglob("run-*.wandb"))


def test_wandb_offline_holds_config_losses_and_narratives(small_config):
    folder, loss = train_and_evaluate(small_config(*WANDB))
    assert wandb.run is None  # closed, so that the next cell starts a run of its own
    (path,) = offline_files(folder)
    config, history = {}, {}
    for record in records(path):
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                history.setdefault(key, []).append(json.loads(item.value_json))
    assert config["encoder"] == {"name": "cf"}
    assert config["training"]["epochs"] == 2
    assert len(history["train_loss"]) >= 1
    assert min(history["val_loss"]) == pytest.approx(loss)
    assert "purchase_reason/bleu" in history
    assert any(key.startswith("narratives") for key in history)
    (table,) = folder.rglob("media/table/narratives*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["user_id", "feature", "item_id", "prediction", "reference"]
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
