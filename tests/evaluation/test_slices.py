"""Slices: what the buckets hold, and made-up models that earn their scores in one of them."""

import numpy as np
import polars as pl
import pytest

from regen.data.histories import Example
from regen.evaluation.slices import example_attributes, slice_scores

KEYS = ["user_id", "feature", "item_id"]


def example(user, rows, item=None):
    rows = np.array(rows, dtype=np.int64)
    return Example(user, "f", item, "text", rows, np.zeros(len(rows), dtype=bool))


def attributes_of(values, name="history_length", features=None):
    return pl.DataFrame(
        {
            "user_id": [f"u{row:03}" for row in range(len(values))],
            "feature": features or ["f"] * len(values),
            "item_id": pl.Series([None] * len(values), dtype=pl.String),
            name: values,
        }
    )


def scored(attributes, right, system="model"):
    return attributes.select(
        pl.lit(system).alias("system"),
        *KEYS,
        pl.lit(1.0).alias("examples"),
        pl.Series("rougeLsum", np.asarray(right, dtype=float)),
        pl.lit(1.0).alias("distinct"),
    )


def test_attributes_count_purchases_of_training_users():
    interactions = pl.DataFrame({"item_id": ["a", "b", "a", "c", "a", "b", "d"]})
    of_training_user = pl.Series([True, True, True, False, False, False, False])
    found = example_attributes(
        [example("u1", [4, 5]), example("u2", [3, 6]), example("u3", [6, 4], item="a")], interactions, of_training_user
    )
    assert found.rows() == [
        ("u1", "f", None, 2, 1, 1.5, "all"),
        ("u2", "f", None, 2, 0, 0.0, "none"),
        ("u3", "f", "a", 2, 2, 1.0, "some"),
    ]


def test_buckets_are_quantiles_with_counts_and_intervals():
    lengths = list(range(1, 41))
    right = [length > 20 for length in lengths]
    table = slice_scores(scored(attributes_of(lengths), right), attributes_of(lengths), resamples=200)
    assert table["bucket"].to_list() == ["1 to 10", "11 to 20", "21 to 30", "31 to 40"]
    assert table["value"].to_list() == [0, 0, 100, 100]
    assert table["examples"].to_list() == table["users"].to_list() == [10] * 4
    half = slice_scores(scored(attributes_of(lengths), right), attributes_of(lengths), buckets=1, resamples=200)
    assert half["value"].to_list() == [50]
    assert 20 < half["low"][0] < 50 < half["high"][0] < 80


def test_a_model_that_knows_seen_items_alone_is_found_out():
    seen = ["all", "some", "none"] * 30
    attributes = attributes_of(seen, "items_seen")
    table = slice_scores(scored(attributes, [value == "all" for value in seen]), attributes, resamples=100)
    assert dict(table.select("bucket", "value").iter_rows()) == {"all": 100, "some": 0, "none": 0}
    flat = slice_scores(scored(attributes, np.ones(90)), attributes, resamples=100)
    assert flat["value"].to_list() == [100] * 3


def test_equal_values_stay_in_one_bucket():
    lengths = [1] * 30 + [2] * 2 + [50] * 8
    attributes = attributes_of(lengths)
    table = slice_scores(scored(attributes, lengths), attributes, resamples=100)
    assert table["bucket"].to_list() == ["1", "2 to 50"]
    assert table["examples"].to_list() == [30, 10]
    same = attributes_of([7] * 5)
    assert slice_scores(scored(same, [1] * 5), same, resamples=100)["bucket"].to_list() == ["7"]


def test_floors_stand_in_the_same_buckets_and_distinct_is_left_out():
    attributes = attributes_of(list(range(20)))
    examples = pl.concat([scored(attributes, np.ones(20)), scored(attributes, np.zeros(20), "shuffled")])
    table = slice_scores(examples, attributes, buckets=2, resamples=100)
    assert table.select("bucket", "system", "value").rows() == [
        ("0 to 9", "model", 100),
        ("0 to 9", "shuffled", 0),
        ("10 to 19", "model", 100),
        ("10 to 19", "shuffled", 0),
    ]
    assert set(table["measure"]) == {"rougeLsum"}


def test_two_narratives_about_one_item_keep_their_own_attributes():
    attributes = attributes_of([3, 9]).with_columns(pl.lit("u").alias("user_id"), pl.lit("i").alias("item_id"))
    table = slice_scores(scored(attributes, [0, 1]), attributes, buckets=2, resamples=100)
    assert table.select("bucket", "value", "examples").rows() == [("3", 0, 1), ("9", 100, 1)]


def test_features_have_their_own_quantiles():
    attributes = attributes_of([*range(10), *range(100, 110)], features=["a"] * 10 + ["b"] * 10)
    table = slice_scores(scored(attributes, np.ones(20)), attributes, buckets=2, resamples=100)
    assert table.select("feature", "bucket").rows() == [
        ("a", "0 to 4"),
        ("a", "5 to 9"),
        ("b", "100 to 104"),
        ("b", "105 to 109"),
    ]


def test_attributes_of_another_run_are_refused():
    with pytest.raises(ValueError, match="1 of 3 scored rows have no attributes; the first is user 'u002'"):
        slice_scores(scored(attributes_of([1, 2, 3]), [1, 1, 1]), attributes_of([1, 2]), resamples=100)
    with pytest.raises(ValueError, match="buckets=0"):
        slice_scores(scored(attributes_of([1]), [1]), attributes_of([1]), buckets=0)
