"""Another system's texts beside runs: joined by their references, scored on the same pairs, in one table."""

import json

import polars as pl
import pytest

from regen.commands.evaluate import evaluate_from_config
from regen.config.objects import compose
from regen.evaluation.beside_runs import join_with_runs, joined

TOLD = pl.DataFrame(
    [
        ("u1", "f", "pen", "Likes pens."),
        ("u1", "f", "ink", "Likes ink."),
        ("u2", "f", "cup", "Likes cups."),
        ("u3", "f", "pen", "Likes both."),
        ("u4", "f", "ink", "Likes both."),
        ("u5", "f", "cup", "Twice."),
        ("u5", "f", "mug", "Twice."),
    ],
    schema=["user_id", "feature", "item_id", "reference"],
    orient="row",
)


def theirs(*lines, user_id=(None,), feature=None):
    users = list(user_id) * (len(lines) // len(user_id))
    columns = {"user_id": users, "feature": feature, "prediction": [f"text {at}" for at in range(len(lines))]}
    return pl.DataFrame(columns | {"reference": lines}, schema_overrides={"user_id": pl.String, "feature": pl.String})


def test_lines_without_users_get_the_users_and_items_of_their_references():
    found, by = joined(theirs("Unknown.", "Likes ink. ", "Likes cups.", "Likes pens."), TOLD)
    assert by == ["reference"]
    assert found.rows() == [
        ("u1", "f", "pen", "Likes pens.", "text 3"),
        ("u1", "f", "ink", "Likes ink.", "text 1"),
        ("u2", "f", "cup", "Likes cups.", "text 2"),
    ]


def test_a_reference_of_several_users_needs_the_user():
    assert joined(theirs("Likes both."), TOLD)[0].is_empty()
    found, by = joined(theirs("Likes both.", "Likes both.", user_id=("u4", "u3")), TOLD)
    assert by == ["reference", "user_id"]
    assert found.select("user_id", "prediction").rows() == [("u3", "text 1"), ("u4", "text 0")]
    assert joined(theirs("Likes pens.", user_id=("u2",)), TOLD)[0].is_empty()


def test_equal_references_of_a_user_are_joined_in_order_and_each_once():
    found, _ = joined(theirs("Twice.", "Twice.", "Twice."), TOLD)
    assert found.select("item_id", "prediction").rows() == [("cup", "text 0"), ("mug", "text 1")]


def test_a_given_feature_has_to_agree():
    assert joined(theirs("Likes pens.", feature="another"), TOLD)[0].is_empty()
    assert joined(theirs("Likes pens.", feature="f"), TOLD)[1] == ["reference", "feature"]


@pytest.fixture
def run(small_config, no_sentence_encoder, tmp_path, monkeypatch):
    """A finished run; the working directory is the test's own."""
    from regen.pipeline import train_and_evaluate

    monkeypatch.chdir(tmp_path)
    return train_and_evaluate(small_config("trainer.max_steps=1"))[0]


def written(path, rows, **more):
    path.write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
    return path


def test_one_table_has_runs_and_another_system_with_all_rows(run, tmp_path, capsys):
    told = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    lines = [{"user_id": row["user_id"], "prediction": row["reference"], "reference": row["reference"]} for row in told]
    foreign = [{"user_id": "nobody", "prediction": "A pen by Zyxwv.", "reference": "Unknown."}]
    (tmp_path / "theirs").mkdir()
    path = written(tmp_path / "theirs" / "predictions.jsonl", lines + foreign)
    arguments = [f"runs={run.parent}", f"predictions={path}", "note='Saw 7 pairs.'", "evaluation.resamples=100"]
    evaluate_from_config(compose(arguments, root="evaluate"))
    out = " ".join(capsys.readouterr().out.split())
    count, users = len(told), len({row["user_id"] for row in told})
    assert f"{count} of its {count + 1} texts belong to the {count} test narratives of these runs, joined by" in out
    assert "training narratives; the other system has its own. Saw 7 pairs." in out
    table = pl.read_csv(run.parent / "table.csv")
    values = table.filter(pl.col("column") == "theirs", pl.col("metric").is_in(["similarity", "bleu", "ungrounded"]))
    assert dict(values.select("metric", "users").rows()) == dict.fromkeys(["similarity", "bleu", "ungrounded"], users)
    assert dict(values.select("metric", "value").rows())["similarity"] == pytest.approx(1, abs=1e-6)
    assert "identified_item_all" in table.filter(pl.col("column") == "theirs", pl.col("status") == "ok")["metric"]


def test_without_the_data_of_the_runs_the_texts_are_scored_without_histories(run, tmp_path):
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    beside = join_with_runs(run / "predictions.jsonl", [run])
    assert not {"history", "category"} & set(beside.predictions.columns)
    assert beside.note.endswith("joined by reference and user and feature.")


def test_a_file_about_other_texts_is_refused_before_it_is_scored(run, tmp_path):
    path = written(tmp_path / "theirs.jsonl", [{"prediction": "a", "reference": "Unknown."}] * 2)
    with pytest.raises(ValueError, match=r"theirs.jsonl: 0 of its 2 lines have the reference of one of the \d+ test"):
        evaluate_from_config(compose([f"runs={run.parent}", f"predictions={path}"], root="evaluate"))
    with pytest.raises(ValueError, match="none of these runs has texts yet"):
        join_with_runs(path, [tmp_path])


def test_a_note_needs_another_system():
    with pytest.raises(ValueError, match="note='x' is about the file"):
        evaluate_from_config(compose(["runs=here", "note=x"], root="evaluate"))


@pytest.mark.real_data
def test_published_predictions_of_xrec_join_the_explanations_by_reference(real_data):
    from regen.data.xrec import XRecSource
    from regen.evaluation.prediction_files import read_predictions

    tables, _ = XRecSource(folder=str(real_data / "xrec_amazon")).read()
    explained = tables.narratives.filter(pl.col("feature") == "purchase_reason_explanation")
    told = explained.select("user_id", "feature", "item_id", reference="text")
    path = real_data / "xrec_amazon" / "predictions.jsonl.gz"
    found, by = joined(read_predictions(path, named=False), told)
    assert (found.height, by) == (3000, ["reference"])
    assert found.select("user_id", "item_id").n_unique() == 3000
