"""A run that older metrics scored is scored again from its predictions; nothing is generated."""

import json

import polars as pl
import pytest


@pytest.mark.usefixtures("no_sentence_encoder")
def test_older_scores_are_made_anew_from_the_same_predictions(small_config, monkeypatch):
    from regen.evaluation import evaluate
    from regen.pipeline import read_run, train_and_evaluate

    config = small_config("trainer.max_steps=1")
    folder, _ = train_and_evaluate(config)
    run, record = read_run(folder), folder / "evaluation.json"
    assert evaluate.evaluation_is_current(run)
    scores = json.loads((folder / "scores.json").read_text())
    assert {"identified_reciprocal_rank", "ungrounded"} <= scores["purchase_reason"].keys()
    first, before = json.loads(record.read_text()), (folder / "predictions.jsonl").read_bytes()
    record.write_text(json.dumps({name: value for name, value in first.items() if name != "metrics"}))
    assert not evaluate.evaluation_is_current(run)
    assert evaluate.predictions_are_current(run)
    monkeypatch.setattr(evaluate, "_generate", None)
    (folder / "examples.parquet").write_bytes(b"old")
    assert train_and_evaluate(config)[0] == folder
    assert evaluate.evaluation_is_current(run)
    assert json.loads(record.read_text()) == first
    assert (folder / "predictions.jsonl").read_bytes() == before
    assert "identified_reciprocal_rank" in pl.read_parquet(folder / "examples.parquet").columns


@pytest.mark.usefixtures("no_sentence_encoder")
def test_a_setting_of_the_scores_alone_generates_nothing(small_config, monkeypatch):
    from regen.evaluation import evaluate
    from regen.pipeline import train_and_evaluate

    folder, _ = train_and_evaluate(small_config("trainer.max_steps=1"))
    texts, scores = ((folder / name).read_bytes() for name in ("predictions.jsonl", "scores.json"))
    generate = evaluate._generate
    monkeypatch.setattr(evaluate, "_generate", None)
    assert train_and_evaluate(small_config("trainer.max_steps=1", "evaluation.resamples=200"))[0] == folder
    assert (folder / "predictions.jsonl").read_bytes() == texts
    assert (folder / "scores.json").read_bytes() != scores
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["settings"]["resamples"] == 200
    assert record["costs"]["generation_ms"] > 0
    asked = []
    monkeypatch.setattr(evaluate, "_generate", lambda *given: asked.append(given) or generate(*given))
    train_and_evaluate(small_config("trainer.max_steps=1", "evaluation.generation.max_new_tokens=5"))
    assert len(asked) == 1
