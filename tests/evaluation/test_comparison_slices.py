"""Where runs differ: a made-up model that is better for long histories only shows it there, and only there."""

import polars as pl
import pytest

from regen.commands.evaluate import evaluate_from_config
from regen.config.objects import compose
from regen.evaluation import comparison_slices
from regen.evaluation.comparison import Cell, Columns

USERS = 80


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """`both` is as good as `cf` up to 40 purchases and better above; every user has another number of purchases."""
    keys = {"user_id": [f"u{at:03}" for at in range(USERS)], "feature": "f"}
    lengths = pl.DataFrame(keys | {"item_id": None, "history_length": range(1, USERS + 1)}).with_columns(
        pl.col("item_id").cast(pl.String),
        final_item_popularity=pl.lit(3),
        mean_item_popularity=pl.lit(3.0),
        items_seen=pl.lit("all"),
    )
    monkeypatch.setattr(comparison_slices, "_attributes", lambda run, known: lengths)
    found = []
    for encoder, gain in {"cf": 0.0, "both": 0.2}.items():
        for seed in range(3):
            folder = tmp_path / f"{encoder}-{seed}"
            folder.mkdir()
            rows = lengths.select(
                pl.lit("model").alias("system"),
                *keys,
                "item_id",
                examples=pl.lit(1.0),
                similarity=0.5 + 0.01 * (pl.col("history_length") % 7 + seed) + gain * (pl.col("history_length") > 40),
                bleu_of_nothing=pl.lit(1.0),
            )
            rows.write_parquet(folder / "examples.parquet")
            parts = ("cf", "content") if encoder == "both" else ("cf",)
            found.append(Cell(folder, encoder, seed, {"feature": "f"}, None, parts))
    return found


def test_the_difference_is_where_it_was_planted(cells, tmp_path):
    sections = comparison_slices.slices_of(cells, columns=Columns(), resamples=200)
    by_length, *popularity = sections
    assert by_length.title == "f: interactions in the history"
    assert list(by_length.blocks) == ["1 to 20", "21 to 40", "41 to 60", "61 to 80"]
    found = {}
    for label, block in by_length.blocks.items():
        assert block.users == 20
        (beside,) = (column for column in block.columns if column.name == "both vs cf")
        found[label] = beside.estimate(block.metrics["similarity"]).value
    assert [found[label] > 30 for label in by_length.blocks] == [False, False, True, True]
    assert [found[label] == pytest.approx(0) for label in by_length.blocks] == [True, True, False, False]
    assert [list(section.blocks) for section in popularity] == [["all"], ["all"]], "one bucket where all are equal"
    text = comparison_slices.write_slices(sections, tmp_path).read_text()
    assert "| Bucket | Users | cf | both | both vs cf |" in text
    assert "| 41 to 60 | 20 |" in text


def test_runs_without_scores_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none of these runs is scored yet"):
        comparison_slices.slices_of([Cell(tmp_path, "cf", 0, {"feature": "f"})], columns=Columns())


@pytest.mark.usefixtures("no_sentence_encoder")
def test_the_command_writes_slices_of_real_runs_and_needs_their_data(small_config, tmp_path, capsys):
    from regen.pipeline import train_and_evaluate

    for encoder in ("cf", "none"):
        folder, _ = train_and_evaluate(small_config("trainer.max_steps=1", f"encoder={encoder}"))
    command = compose([f"runs={folder.parent}", "diagnose=true", "evaluation.resamples=100"], root="evaluate")
    evaluate_from_config(command)
    text = (folder.parent / "slices.md").read_text()
    assert text in capsys.readouterr().out
    assert text.count("## purchase_reason: ") == 3
    assert " nan" not in text
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="prepared data are not on this machine"):
        evaluate_from_config(command)
