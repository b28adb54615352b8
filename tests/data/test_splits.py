"""Splits by time and by a user's own lists (by users: test_histories.py)."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from regen.config.schema import FileSplit, TimeSplit
from regen.data.histories import build_examples
from regen.data.prepare import load_tables
from regen.data.splits import fitted_interactions, points, split_narratives, split_of
from regen.data.tables import DataError
from regen.embeddings.encode import cf_interactions
from regen.pipeline import prepared_artefact, train_and_evaluate
from regen.storage import identity

TIME = TimeSplit("time", 0.2, 0.3, None, None)


@pytest.fixture
def tables(small_config):
    return load_tables(prepared_artefact(small_config()).path)


def test_targets_lie_on_their_side_of_the_points(tables):
    validation_from, test_from = points(tables, TIME)
    assert validation_from < test_from
    names = split_narratives(tables, TIME)
    times = tables.narratives["timestamp"]
    assert times.filter(names == "train").max() < validation_from <= times.filter(names == "validation").min()
    assert times.filter(names == "validation").max() < test_from <= times.filter(names == "test").min()
    about = tables.narratives["item_id"].is_not_null()
    assert names.is_null().equals(~about)
    assert (names == "test").sum() == pytest.approx(0.3 * about.sum(), abs=0.02 * about.sum())


def test_nothing_after_a_point_reaches_an_input(tables):
    """But for the item that is spoken of, without its review."""
    ends = dict(zip(("validation", "test"), points(tables, TIME), strict=True))
    times, items = tables.interactions["timestamp"].to_numpy(), tables.interactions["item_id"].to_list()
    examples = build_examples(tables, withhold={"purchase_reason": False}, split=TIME)
    assert {example.split for example in examples} == {"train", "validation", "test"}
    for example in examples:
        assert items[example.rows[-1]] == example.item_id
        assert example.withheld[-1]
        before = times[example.rows[:-1]]
        assert (before <= times[example.rows[-1]]).all()
        assert (before < ends.get(example.split, np.inf)).all()
    fitted = tables.interactions.filter(fitted_interactions(tables, TIME))
    assert fitted["timestamp"].max() < ends["validation"]
    assert len(cf_interactions(tables, TIME)) <= len(fitted)


def test_a_test_user_may_be_trained_on_before_the_point(tables):
    """In contrast to distinct users: CF sees the earlier purchases of everybody."""
    fitted = set(tables.interactions.filter(fitted_interactions(tables, TIME))["user_id"])
    assert fitted & set(tables.narratives.filter(split_narratives(tables, TIME) == "test")["user_id"])


def test_points_may_be_dates(tables):
    first, second = points(tables, TIME)
    assert points(tables, replace(TIME, validation_from=str(first), test_from=str(second))) == (first, second)
    with pytest.raises(ValueError, match="split.test_from=soon must be a date such as 2018-05-01"):
        points(tables, replace(TIME, test_from="soon"))
    with pytest.raises(ValueError, match=r"start at 2030-01-01 00:00:00 \(split.validation_from=2030-01-01, .* before"):
        points(tables, replace(TIME, validation_from="2030-01-01", test_from="2020-01-01"))


def test_a_narrative_without_a_time_has_that_of_its_purchase(tables):
    timeless = replace(tables, narratives=tables.narratives.with_columns(timestamp=pl.lit(None, dtype=pl.Int64)))
    assert points(timeless, TIME) == points(tables, TIME)
    assert split_narratives(timeless, TIME).equals(split_narratives(tables, TIME))


def test_narratives_without_a_purchase_are_refused(tables):
    about_users = replace(tables, narratives=tables.narratives.filter(pl.col("item_id").is_null()))
    with pytest.raises(
        DataError, match=r"split=time: 0 of \d+ narratives .*Use one of purchase_reason.*or split=users"
    ):
        points(about_users, TIME)


def test_equal_times_are_refused_with_the_times_and_the_fix(tables):
    one = pl.lit(1_519_948_800)
    together = replace(
        tables,
        interactions=tables.interactions.with_columns(timestamp=one),
        narratives=tables.narratives.with_columns(timestamp=pl.when(pl.col("item_id").is_not_null()).then(one)),
    )
    with pytest.raises(
        ValueError, match=r"would start at 2018-03-02 00:00:00 \(split.validation_from=None, "
    ) as caught:
        points(together, TIME)
    assert "purchases from 2018-03-02 00:00:00 to 2018-03-02 00:00:00. Set split.validation_from" in str(caught.value)


def test_purchases_without_a_time_are_refused(tables):
    without = replace(tables, interactions=tables.interactions.with_columns(timestamp=pl.lit(None, dtype=pl.Int64)))
    with pytest.raises(DataError, match=r"split=time: 2,825 of 2,825 purchases have no time"):
        points(without, TIME)


@pytest.mark.slow  # trains a cell
def test_a_cell_is_trained_on_a_split_by_time_and_its_record_says_so(small_config):
    folder, _ = train_and_evaluate(small_config("split=time", "trainer.max_steps=2"))
    assert '"split": "by time, validation 10%, test 20%"' in (folder / "run.json").read_text()
    with pytest.raises(DataError, match="split=time: a brief_user_summary describes all purchases"):
        train_and_evaluate(small_config("split=time", "feature=brief_user_summary"))


def lists(folder, **users):
    folder.mkdir(exist_ok=True)
    for name, ids in users.items():
        (folder / f"{name}.txt").write_text("".join(f"{user}\n" for user in ids))
    return FileSplit("file", str(folder))


def test_lists_of_users_decide(tmp_path):
    users = pl.Series(["a", "b", "c", "d"])
    assert split_of(users, lists(tmp_path, validation="a", test="b")).to_list() == [
        "validation",
        "test",
        "train",
        "train",
    ]
    assert split_of(users, lists(tmp_path, train="c")).to_list() == ["validation", "test", "train", None]


def test_wrong_lists_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"there is no .*test.txt. It should list the ids of the test users, one per line"
    ):
        split_of(pl.Series(["a"]), lists(tmp_path, validation="a"))
    with pytest.raises(DataError, match=r"test.txt: user 'a' is in the validation list as well"):
        split_of(pl.Series(["a"]), lists(tmp_path, validation="a", test="a"))


def test_other_lists_are_another_run(small_config, tmp_path, tables):
    users = sorted(set(tables.narratives["user_id"]))
    lists(tmp_path / "mine", validation=users[:8], test=users[8:20])
    config = small_config("split=file", f"split.folder={tmp_path}/mine", "trainer.max_steps=1")
    folder, _ = train_and_evaluate(config)
    rows = pl.read_ndjson(folder / "predictions.jsonl")
    assert set(rows["user_id"]) == set(users[8:20])
    lists(tmp_path / "mine", test=users[8:16])
    assert train_and_evaluate(config)[0] != folder


def test_other_files_beside_the_lists_change_nothing(tmp_path):
    lists(tmp_path, validation="a", test="b")
    split = {"name": "file", "folder": str(tmp_path)}
    before = identity.split(split)
    (tmp_path / "notes.txt").write_text("anything")
    assert identity.split(split) == before
    (tmp_path / "train.txt").write_text("c")
    assert identity.split(split) != before
