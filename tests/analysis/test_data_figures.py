"""Counts of a data set, by hand."""

import os

import polars as pl
import pytest

from regen.analysis.data_figures import (
    items_per_user,
    narrative_lengths,
    newest_artefact,
    newest_ratings,
    rating_shares,
    users_per_item,
)

INTERACTIONS = pl.DataFrame({"user_id": ["a", "a", "a", "b"], "item_id": ["x", "y", "x", "x"]})


def rated(*scores, feature="user_profile", attribute="clarity"):
    return pl.DataFrame({"feature": feature, "attribute": attribute, "score": scores})


def test_items_and_users_are_distinct():
    assert items_per_user(INTERACTIONS).rows() == [("a", 2), ("b", 1)]
    assert users_per_item(INTERACTIONS).rows() == [("x", 2), ("y", 1)]


def test_lengths_count_words():
    narratives = pl.DataFrame({"feature": ["b", "a"], "text": ["one  two\nthree", "don't stop"]})
    assert narrative_lengths(narratives).rows() == [("a", 2), ("b", 3)]


def test_rating_shares_have_all_scores_and_sum_to_one():
    ratings = pl.concat([rated(7, 7, 4, 1), rated(2, attribute="foresight")])
    shares = rating_shares(ratings)
    assert shares["score"].to_list() == [*range(1, 8)] * 2
    assert shares.filter(attribute="clarity")["share"].to_list() == [0.25, 0, 0, 0.25, 0, 0, 0.5]
    assert shares.group_by("attribute").agg(pl.col("share").sum(), pl.col("ratings").sum()).sort(
        "attribute"
    ).rows() == [
        ("clarity", 1.0, 4),
        ("foresight", 1.0, 1),
    ]


def test_a_score_between_two_points_is_the_lower_one():
    assert rating_shares(rated(4.9, 5.0)).filter(pl.col("ratings") > 0)["score"].to_list() == [4, 5]


def test_bad_ratings_are_named():
    with pytest.raises(ValueError, match="1 of 3 scores are not 1 to 7; the first is 8, the clarity of a user_profile"):
        rating_shares(rated(1, 8, 7))
    with pytest.raises(ValueError, match="2 of 2 scores"):
        rating_shares(rated(None, 0))
    with pytest.raises(ValueError, match="no column 'score'"):
        rating_shares(rated(1).drop("score"))


def test_ratings_of_the_rating_stage_with_its_confidence(tmp_path):
    assert newest_ratings(tmp_path) is None
    (tmp_path / "rated-a").mkdir()
    pl.DataFrame(
        {
            "user_id": ["u", "u", "v"],
            "stage": ["user_summary"] * 3,
            "rater": ["r"] * 3,
            "attribute": ["clarity", "veracity", "clarity"],
            "score": [5, 6, 7],
            "confidence": [4.5, 4.5, 7.0],
        }
    ).write_parquet(tmp_path / "rated-a" / "ratings.parquet")
    shares = rating_shares(newest_ratings(tmp_path)).filter(pl.col("ratings") > 0)
    assert shares.select("attribute", "score", "ratings").rows() == [
        ("clarity", 5, 1),
        ("clarity", 7, 1),
        ("veracity", 6, 1),
        ("confidence", 4, 1),
        ("confidence", 7, 1),
    ]


def test_the_newest_artefact_that_is_whole(tmp_path):
    for age, name in enumerate((".prepared-c.partial-1", "prepared-a", "prepared-b", "cf-d")):
        (tmp_path / name).mkdir()
        if name != "cf-d":
            (tmp_path / name / "interactions.parquet").touch()
            os.utime(tmp_path / name / "interactions.parquet", (1000 - age, 1000 - age))
    assert newest_artefact(tmp_path, "interactions.parquet").name == "prepared-a"
    with pytest.raises(FileNotFoundError, match=r"no artefact with ratings\.parquet"):
        newest_artefact(tmp_path, "ratings.parquet")
