"""Reads what W&B wrote offline, by hand: wandb 0.31 has no reader in Python."""

import json
import time
from dataclasses import dataclass, field

from wandb.proto import wandb_internal_pb2

BLOCK = 32_768  # an offline file is a LevelDB log: blocks of chunks of checksum (4), length (2), kind (1), content


@dataclass
class Logged:
    """One run as W&B would show it."""

    run: object
    exit_code: int
    config: dict = field(default_factory=dict)
    history: dict = field(default_factory=dict)  # all values of each metric
    artifacts: dict = field(default_factory=dict)  # records by name


def records(path):
    """Every record of an offline file."""
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
    return sorted(folder.rglob("offline-run-*/run-*.wandb"))


def read_offline(folder):
    """The one offline run below a folder, once W&B's own process has written its end."""
    (path,) = offline_files(folder)
    deadline = time.monotonic() + 60
    while not any(record.HasField("exit") for record in _whole(path)):
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.05)
    found = list(records(path))
    logged = Logged(
        run=next(record.run for record in found if record.HasField("run")),
        exit_code=next(record.exit.exit_code for record in found if record.HasField("exit")),
    )
    for record in found:
        if record.HasField("run"):
            logged.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                logged.history.setdefault(key, []).append(json.loads(item.value_json))
        if record.HasField("artifact"):
            logged.artifacts[record.artifact.name] = record.artifact
    return logged


def _whole(path):
    """The records so far; none while the last one is half-written."""
    try:
        return list(records(path))
    except Exception:  # protobuf's own DecodeError, or the file's start is not there yet
        return []
