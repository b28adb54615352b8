"""A package of the user's own, used without a change in regen: examples/extension."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from small import SMALL

from regen.embeddings.cf import normalized_factors

REPOSITORY = Path(__file__).parent.parent

EXTENSION = REPOSITORY / "examples" / "extension"
PUBLIC = {  # what docs/extend.md names, and what an artefact takes
    "regen.data.histories",
    "regen.data.prepare",
    "regen.data.source",
    "regen.data.tables",
    "regen.models.adapter",
    "regen.storage.artefacts",
}
OURS = [option for option in SMALL if not option.startswith(("adapter", "cf."))]


def regen(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXTENSION), str(REPOSITORY)])}
    command = [sys.executable, "-m", "regen", *arguments, "--config-dir", str(EXTENSION / "conf")]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_it_imports_only_public_modules():
    imported = {
        line.split()[1]
        for path in EXTENSION.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("from regen")
    }
    assert imported == PUBLIC


def test_its_cf_model_that_reads_sequences_puts_items_with_the_same_next_one_together(monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENSION))
    from my_regen.next_purchase import NextPurchase

    rows = pl.DataFrame({"user_id": ["a", "a", "b", "b", "c", "c"], "item": [0, 2, 1, 2, 3, 4], "rating": [5.0] * 6})
    vectors = normalized_factors(NextPurchase(factors=2), rows, alpha=0.0, items=6)
    assert vectors.shape == (6, 2)
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)
    assert vectors[0] @ vectors[3] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow  # three commands that load torch, one of which trains
def test_its_adapter_cf_model_part_metric_and_source_are_used(tmp_path):
    done = regen("train", "experiment=mine", *OURS, "trainer.max_steps=2", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs/runs").glob("purchase_reason-both_and_price-bottleneck-*")
    assert {*json.loads((run / "run.json").read_text())["inputs"]} == {"prepared", "cf", "content", "price"}
    scores = json.loads((run / "scores.json").read_text())["purchase_reason"]
    assert 0 <= scores["same_first_word"]["model"]["value"] <= 1
    shop = {
        "products": [{"item_id": "a", "title": "Pens", "price": 2.0}, {"item_id": "b", "title": "Ink"}],
        "purchases": [{"user_id": "u", "item_id": item, "timestamp": at} for at, item in enumerate("ab")],
        "reasons": [{"user_id": "u", "text": "To refill the pens."}],
    }
    (tmp_path / "shop.json").write_text(json.dumps(shop))
    done = regen("prepare", "source=shop", "source.path=shop.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    prepared = done.stdout.strip().splitlines()[-1]
    assert pl.read_parquet(tmp_path / prepared / "narratives.parquet")["item_id"].to_list() == ["b"]
    done = regen("prepare", "source=shop", "source.path=nowhere.json", folder=tmp_path)
    assert done.returncode == 1
    assert "source.path=nowhere.json: no such file" in done.stderr
