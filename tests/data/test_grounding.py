"""Grounding: what a text names and its user's history does not hold is found; what the history holds is not."""

import numpy as np
import polars as pl
import pytest

from regen.data.grounding import brand_names, claims, history_texts, ungrounded
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, Tables

BRANDS = {"Avery", "Falcon"}


@pytest.fixture
def history():
    items = pl.DataFrame(
        [
            ("i1", "Falcon Stapler", "Staples 25 sheets.", "Office", 12.0, "Falcon"),
            ("i2", "Gift box", None, None, None, None),
        ],
        schema=ITEMS,
        orient="row",
    )
    day = 1_500_000_000  # 14 July 2017
    interactions = pl.DataFrame(
        [("u", "i1", day, 5.0, "Nice", "For Nancy\u2019s desk, costs 1000"), ("u", "i2", None, None, None, None)],
        schema=INTERACTIONS,
        orient="row",
    )
    tables = Tables(items=items, interactions=interactions, narratives=pl.DataFrame(schema=NARRATIVES))
    assert brand_names(items) == {"Falcon"}
    return history_texts(tables, [np.array([0, 1]), np.array([1])])


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("The user bought a stapler by Falcon for $12.00 in July 2017.", []),
        ("They paid $13 for it.", ["13"]),
        ("It is for Nancy and for Nancy's office, and I'm sure.", []),
        ("It is for Peter, Nancy and “Paul”.", ["Peter", "Paul"]),
        ("Avery labels fit. Nothing else does.", ["Avery"]),
        ("Falcon fits. Great staplers. Always.", []),
        ("A 5-star rating of 25 sheets, 1,000 in all, over 2 purchases.", []),
        ("A 3M product of the 1990s.", ["3M", "1990s"]),
        ("", []),
    ],
)
def test_names_and_numbers_that_the_history_lacks_are_found(history, text, missing):
    assert ungrounded(text, history[0], BRANDS) == missing


def test_each_text_is_checked_against_its_own_history(history):
    text = "It is a gift by Falcon."
    assert ungrounded(text, history[0]) == []
    assert ungrounded(text, history[1]) == ["Falcon"]


def test_the_first_word_of_a_sentence_is_no_name():
    assert claims("Staplers matter. Paper too!\nInk as well: Great.") == []
