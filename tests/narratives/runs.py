"""A run of `regen narrate` in a process of its own, and what its ledger says afterwards."""

import sqlite3
import sys
from collections import Counter


def command(server, folder, tmp_path):
    options = {
        "source": "jsonl",
        "source.folder": folder,
        "narrator": "openai",
        "narrator.model": "scripted",
        "narrator.base_url": server.url,
        "narrator.concurrency": 16,
        "narrator.timeout": 2,
        "narrator.ledger": tmp_path / "ledger.sqlite",
        "paths.data_dir": tmp_path / "artefacts",
        "hydra.run.dir": tmp_path / "logs",
    }
    return [sys.executable, "-m", "regen", "narrate", *(f"{key}={value}" for key, value in options.items())]


def outcomes(ledger):
    with sqlite3.connect(ledger) as db:
        return Counter(row[0] for row in db.execute("SELECT outcome FROM attempts"))


def recorded(ledger):
    """Hashes of the requests whose answers the ledger has; the server wrote them into the texts."""
    with sqlite3.connect(ledger) as db:
        texts = [row[0] for row in db.execute("SELECT text FROM attempts WHERE outcome = 'answered'")]
    return {
        text.rsplit('"', 2)[-2].rsplit(" ", 1)[-1] if "remark" not in text else text.split('"')[3][-64:]
        for text in texts
    }
