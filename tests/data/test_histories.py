"""What a narrative's input holds, what it must not hold, and splits that do not move."""

import random

import numpy as np
import polars as pl
import pytest

from regen.config.schema import UsersSplit
from regen.data.histories import build_examples, withheld_reviews
from regen.data.splits import split_of
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, Tables, sort_interactions

DAY = 86_400


def tables_of(purchases, narratives, untitled=()):
    """Tables from (user, item, day, review) and (user, feature, item, day) rows."""
    items = sorted({item for _, item, _, _ in purchases})
    return Tables(
        items=pl.DataFrame(
            {"item_id": items, "title": [None if item in untitled else f"Item {item}" for item in items]},
            schema_overrides={"title": pl.String},
        ).select(
            *(pl.col(n) if n in ("item_id", "title") else pl.lit(None, dtype=t).alias(n) for n, t in ITEMS.items())
        ),
        interactions=sort_interactions(
            pl.DataFrame(
                [(u, i, None if d is None else d * DAY, 5.0, None, r) for u, i, d, r in purchases],
                schema=INTERACTIONS,
                orient="row",
            )
        ),
        narratives=pl.DataFrame(
            [(u, f, i, None if d is None else d * DAY, f"about {u}") for u, f, i, d in narratives],
            schema=NARRATIVES,
            orient="row",
        ),
    )


def items_of(tables, example):
    return tables.interactions["item_id"].gather(example.rows).to_list()


def test_history_ends_with_the_interaction_spoken_of():
    bought = [("u", "a", 1, "x"), ("u", "b", 2, "y"), ("u", "c", 2, "z"), ("u", "d", 3, "w")]
    tables = tables_of(bought, [("u", "purchase_reason", "b", 2), ("u", "user_profile", None, None)])
    reason, profile = build_examples(tables, withhold={"purchase_reason": False, "user_profile": False})
    assert items_of(tables, reason) == ["a", "c", "b"]  # same day: before it; later: not there
    assert items_of(tables, profile) == ["a", "b", "c", "d"]


def test_without_times_everything_comes_before():
    bought = [("u", item, None, None) for item in "abc"]
    tables = tables_of(bought, [("u", "purchase_reason_explanation", "a", None)])
    (example,) = build_examples(tables, withhold={"purchase_reason_explanation": False})
    assert items_of(tables, example) == ["b", "c", "a"]


def test_latest_fifty_are_kept_and_end_the_same():
    bought = [("u", f"i{day:03d}", day, None) for day in range(120)]
    tables = tables_of(bought, [("u", "purchase_reason", "i100", 100), ("u", "user_profile", None, None)])
    reason, profile = build_examples(tables, withhold={"purchase_reason": False, "user_profile": False})
    assert items_of(tables, reason) == [f"i{day:03d}" for day in range(51, 101)]
    assert items_of(tables, profile)[-1] == "i119"
    assert len(profile.rows) == 50


def test_untitled_items_are_left_out(caplog):
    bought = [("u", "a", 1, None), ("u", "b", 2, None), ("v", "b", 1, None)]
    tables = tables_of(bought, [("u", "user_profile", None, None), ("v", "user_profile", None, None)], untitled="b")
    (example,) = build_examples(tables, withhold={"user_profile": False})
    assert items_of(tables, example) == ["a"]
    assert "1 of 2 narratives are dropped" in caplog.text
    caplog.clear()
    build_examples(tables, withhold={"user_profile": False}, warn=False)
    assert not caplog.text


def test_a_user_with_one_interaction():
    tables = tables_of([("u", "a", 1, "fine")], [("u", "product_endorsement", "a", 1)])
    (example,) = build_examples(tables, withhold={"product_endorsement": True})
    assert example.rows.tolist() == [0]
    assert example.withheld.tolist() == [True]


def test_withheld_review_and_its_copies_on_variants():
    bought = [
        ("u", "a", 1, "Great pen!"),
        ("u", "b", 1, "great  PEN"),  # a variant's copy, in another case and spacing
        ("u", "c", 2, "Bad pen"),
        ("u", "d", 2, ""),
        ("u", "e", 3, "Great pen"),
    ]
    tables = tables_of(bought, [("u", "product_endorsement", "e", 3)])
    (example,) = build_examples(tables, withhold={"product_endorsement": True})
    assert dict(zip(items_of(tables, example), example.withheld.tolist(), strict=True)) == {
        "a": True, "b": True, "c": False, "d": False, "e": True,
    }  # fmt: skip
    (shown,) = build_examples(tables, withhold={"product_endorsement": False})
    assert not shown.withheld.any()


def test_empty_reviews_are_no_copies():
    tables = tables_of([("u", "a", 1, ""), ("u", "b", 2, None)], [("u", "product_endorsement", "b", 2)])
    (example,) = build_examples(tables, withhold={"product_endorsement": True})
    assert example.withheld.tolist() == [False, True]


def test_ties_do_not_depend_on_the_order_of_rows():
    rows = [("u", item, 1, f"review {item}") for item in "abcdefgh"]
    one = tables_of(rows, [])
    other = tables_of(random.Random(1).sample(rows, len(rows)), [])
    assert one.interactions.equals(other.interactions)


def test_a_user_stays_in_its_split_when_others_come():
    few = [f"u{number}" for number in range(200)]
    many = [f"x{number}" for number in range(5000)] + few[::-1]
    before = dict(zip(few, split_of(pl.Series(few), UsersSplit("users", 0.1, 0.2, "regen")), strict=True))
    after = dict(zip(many, split_of(pl.Series(many), UsersSplit("users", 0.1, 0.2, "regen")), strict=True))
    assert all(after[user] == split for user, split in before.items())
    shares = {name: np.mean([split == name for split in after.values()]) for name in ("train", "validation", "test")}
    assert shares["test"] == pytest.approx(0.2, abs=0.02)
    assert shares["validation"] == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.1, 1.0)])
def test_shares_that_leave_nothing(shares):
    with pytest.raises(ValueError, match="whose sum is below 1"):
        split_of(pl.Series(["u"]), UsersSplit("users", *shares, "regen"))


@pytest.mark.parametrize("max_history", [0, -2])
def test_a_history_of_no_interaction_is_refused(max_history):
    tables = tables_of([("u1", "a", 1, "Fine")], [("u1", "user_profile", None, None)])
    with pytest.raises(ValueError, match=f"data.max_history={max_history} has to be at least 1"):
        build_examples(tables, withhold={"user_profile": False}, max_history=max_history)


def test_a_copy_with_an_emoji_alone_is_withheld():
    tables = tables_of(
        [("u1", "a", 1, "👍"), ("u1", "b", 2, "👎"), ("u1", "c", 3, "👍")], [("u1", "product_endorsement", "c", 3)]
    )
    [example] = build_examples(tables, withhold={"product_endorsement": True})
    assert example.withheld.tolist() == [True, False, True]


def test_a_copy_with_a_title_alone_is_withheld():
    reviews = [("Great gift", None), ("Too small", " "), ("Great Gift!", "")]
    assert withheld_reviews(reviews, final=True).tolist() == [True, False, True]
    assert withheld_reviews([(None, None), (None, None)], final=True).tolist() == [False, True]
