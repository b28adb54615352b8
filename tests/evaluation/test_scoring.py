"""Scores as files: what is written, from which rows, and which files of predictions are refused."""

import gzip
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import sacrebleu

from regen.evaluation.prediction_files import read_predictions
from regen.evaluation.scoring import (
    ScoringOptions,
    score_predictions,
    score_run_files,
    scores_to_text,
    write_atomically,
)

QUICK = ScoringOptions(resamples=100)
WORDS = ["pens", "paper", "ink", "gift", "school", "studio", "parcel", "label"]


def embed(texts):
    counts = np.array([[1.0, *(text.count(word) for word in WORDS)] for text in texts])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def run_predictions(users, feature="f"):
    rows = [
        {
            "user_id": f"u{i}",
            "feature": feature,
            "item_id": None,
            "prediction": f"the user likes {WORDS[i % 8]}",
            "reference": f"the user really likes {WORDS[i % 8]} and {WORDS[i % 3]}",
        }
        for i in range(users)
    ]
    return pl.DataFrame(rows, schema_overrides={"item_id": pl.String})


NARRATIVES = pl.DataFrame({"user_id": ["t0", "t1"], "feature": ["f", "f"], "text": ["the user likes ink", "other"]})


def score(predictions, folder, *, options=QUICK, **more):
    return score_run_files(
        predictions, folder, train=NARRATIVES, validation=NARRATIVES, embed=embed, options=options, **more
    )


def test_a_run_folder_gets_examples_and_scores_of_three_systems(tmp_path):
    predictions = run_predictions(12)
    scores = score(predictions, tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples.parquet", "scores.json"]
    examples = pl.read_parquet(tmp_path / "examples.parquet")
    assert examples["system"].unique(maintain_order=True).to_list() == ["model", "shuffled", "constant"]
    assert examples.height == 36
    bleu = scores["f"]["bleu"]["model"]
    expected = sacrebleu.corpus_bleu(predictions["prediction"].to_list(), [predictions["reference"].to_list()]).score
    assert bleu["value"] == pytest.approx(expected)
    assert bleu["low"] <= bleu["value"] <= bleu["high"]
    assert bleu["users"] == 12
    assert scores["f"]["similarity"]["model"]["value"] > scores["f"]["similarity"]["shuffled"]["value"]
    assert scores["f"]["distinct"]["constant"]["value"] == pytest.approx(1 / 12)


def test_texts_are_embedded_once_for_all_systems(tmp_path):
    calls = []
    score_run_files(
        run_predictions(12),
        tmp_path,
        train=NARRATIVES,
        validation=NARRATIVES,
        embed=lambda texts: calls.append(len(texts)) or embed(texts),
        options=QUICK,
    )
    assert len(calls) == 1


def test_one_test_user_is_scored_without_the_shuffled_floor(tmp_path, caplog):
    scores = score(run_predictions(1), tmp_path)
    assert set(scores["f"]["bleu"]) == {"model", "constant"}
    assert "one test user" in caplog.text


def test_a_metric_that_is_not_defined_is_null_with_its_reason(tmp_path):
    planted = pl.DataFrame(
        {"user_id": [f"u{i}" for i in range(4)], "label": "need", "value": "golf", "forms": [["golf"]] * 4}
    )
    scores = score(run_predictions(4), tmp_path, planted=planted)
    record = scores["f"]["need_recovery"]["model"]
    assert record["value"] is None
    assert "denominator is zero" in record["note"]
    assert "NaN" not in (tmp_path / "scores.json").read_text()
    assert "—" in scores_to_text(scores)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")

    def disk_full(beside):
        beside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, disk_full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def jsonl(path, *records):
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


GOOD = {"prediction": "a", "reference": "b"}


def test_a_file_without_users_makes_every_row_a_user(tmp_path):
    path = tmp_path / "theirs.jsonl.gz"
    path.write_bytes(
        gzip.compress(b'{"prediction": "", "reference": "b"}\n\n{"prediction": "c", "reference": "\\u00e9"}\n')
    )
    frame = read_predictions(path)
    assert frame["user_id"].to_list() == ["1", "2"]
    assert frame["feature"].unique().to_list() == ["narrative"]
    assert frame["reference"].to_list() == ["b", "é"]


def test_our_own_file_is_read_back(tmp_path):
    predictions = run_predictions(3)
    predictions.write_ndjson(tmp_path / "predictions.jsonl")
    assert read_predictions(tmp_path / "predictions.jsonl").equals(predictions)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "0 lines with content"),
        ([GOOD, {"prediction": "a"}], ":2: no key 'reference'; the line has prediction"),
        ([GOOD, "{not json"], ":2: not JSON"),
        ([GOOD, "[1, 2]"], ":2: the line holds a list"),
        (['{"prediction": NaN, "reference": "b"}'], ":1: 'prediction' is NaN; it must be a string"),
        ([{**GOOD, "prediction": None}], ":1: 'prediction' is null"),
        ([{**GOOD, "reference": "  "}], ":1: 'reference' is blank"),
        ([{**GOOD, "user_id": "u"}, GOOD], ":2: this line has no 'user_id'"),
        ([{**GOOD, "user_id": 1.5}], ":1: 'user_id' is 1.5"),
    ],
)
def test_a_bad_line_is_named(tmp_path, records, message):
    path = jsonl(tmp_path / "bad.jsonl", *records)
    with pytest.raises(ValueError, match=message) as raised:
        read_predictions(path)
    assert str(path) in str(raised.value)


def test_a_missing_or_cut_off_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        read_predictions(tmp_path / "nowhere.jsonl")
    whole = gzip.compress(json.dumps({**GOOD, "prediction": "".join(map(chr, range(48, 4000)))}).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut off gzip file"):
        read_predictions(tmp_path / "cut.jsonl.gz")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prediction": "caf\xe9", "reference": "b"}\n')
    with pytest.raises(ValueError, match="not UTF-8"):
        read_predictions(tmp_path / "latin.jsonl")


def test_the_constant_of_a_foreign_file_is_scored_on_the_rows_it_was_not_picked_on(tmp_path):
    records = [{"prediction": f"likes {WORDS[i % 8]}", "reference": f"number {i}"} for i in range(40)]
    theirs = read_predictions(jsonl(tmp_path / "theirs.jsonl", *records))
    scores = score_predictions(theirs, tmp_path / "out", embed=None, options=QUICK)
    users = {system: record["users"] for system, record in scores["narrative"]["rouge1"].items()}
    assert users["model"] == 40
    examples = pl.read_parquet(tmp_path / "out" / "examples.parquet")
    for system in ("model_rest", "constant"):
        assert examples.filter(pl.col("system") == system)["user_id"].to_list() == [str(i) for i in range(5, 41)]
    assert "over 36 of 40 rows" in scores["narrative"]["bleu"]["constant"]["note"]
    assert "over 36 of 40 rows" in scores_to_text(scores)
    assert scores_to_text(scores).startswith("narrative, 40 users\n")


def test_every_printed_row_has_a_name_for_people(tmp_path):
    planted = pl.DataFrame(
        {"user_id": [f"u{i}" for i in range(12)], "label": "mood", "value": "x", "forms": [["x"]] * 12}
    )
    own = replace(QUICK, own={"mine": lambda prediction, reference: 1.0})
    rows = run_predictions(12).with_columns(category=pl.lit("Pens"), item_id=pl.col("user_id"))
    text = scores_to_text(score(rows, tmp_path, planted=planted, options=own))
    printed = [line.strip().split("  ")[0] for line in text.splitlines() if line.startswith("  ")]
    assert {"Identification among all", "Item identification among all", "Recovery: mood", "mine"} <= set(printed)
    assert not [name for name in printed if "_" in name]


@pytest.mark.real_data
@pytest.mark.parametrize(("stemmer", "lsum"), [(True, 33.46), (False, 32.68)])
def test_xrec_predictions_score_as_the_reference_implementations_do(tmp_path, real_data, stemmer, lsum):
    options = ScoringOptions(stemmer=stemmer, resamples=200)
    path = real_data / "xrec_amazon" / "predictions.jsonl.gz"
    scores = score_predictions(read_predictions(path), tmp_path, embed=None, options=options)["narrative"]
    assert round(scores["bleu"]["model"]["value"], 2) == 15.99
    assert round(scores["rougeLsum"]["model"]["value"], 2) == lsum
    assert scores["bleu"]["model"]["users"] == 3000
    assert scores["bleu"]["constant"]["users"] == scores["bleu"]["model_rest"]["users"] == 2700
    assert scores["rougeLsum"]["constant"]["value"] > scores["rougeLsum"]["model_rest"]["value"]  # the known floor
