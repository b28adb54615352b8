"""The item table: look-up, and a search that ranks."""

import numpy as np
import polars as pl
import pytest

from regen.data.tables import ITEMS as SCHEMA
from regen.serving.items import Items

ROWS = [
    ("A", "Blue pen", None, "Office - Pens", 1.5, "Ax"),
    ("B", "Pen holder of oak, blue", "For pens", "Office", None, "Bo"),
    ("C", "Ink", None, "Office - Pens", None, "Blue Co"),
    ("D", None, None, "Office - Pens", None, "Blue Co"),
    ("E", "ÉTUI bleu (50% off)", None, None, None, None),
    ("F", "Red pen", None, None, None, None),
]
TABLE = pl.DataFrame(ROWS, schema=SCHEMA, orient="row")


def found(items, query, **options):
    return [item.item_id for item in items.search(query, **options)]


def test_items_are_found_by_id():
    items = Items(TABLE)
    assert len(items) == 6
    assert "A" in items
    assert "Z" not in items
    assert (items.get("A").title, items.get("A").price, items.get("A").brand) == ("Blue pen", 1.5, "Ax")
    assert items.get("Z") is None


def test_every_word_has_to_be_there_and_titles_go_first():
    items = Items(TABLE)
    assert found(items, "BLUE pen") == ["A", "B", "C"]
    assert found(items, "blue pen", limit=1) == ["A"]
    assert found(items, "étui") == ["E"]
    assert found(items, "office ax") == ["A"]
    assert found(items, "oak ax") == []


def test_what_was_bought_more_goes_before_what_was_not():
    factors = np.zeros((6, 2), dtype=np.float32)
    factors[5] = 1
    assert found(Items(TABLE, factors), "pen")[:2] == ["F", "A"]


@pytest.mark.parametrize("query", ["", "  ", "\x00", "\ud83d", "(50% [", "x" * 100_000, ".*", "a " * 50_000])
def test_odd_queries_find_nothing_and_break_nothing(query):
    assert len(found(Items(TABLE), query)) == (2 if query.startswith("a") else 0)


def test_a_query_is_no_pattern():
    assert found(Items(TABLE), "(50%") == ["E"]


def test_factors_of_other_items_are_refused():
    with pytest.raises(ValueError, match="2 CF factors for 6 items"):
        Items(TABLE, np.zeros((2, 4), dtype=np.float32))
