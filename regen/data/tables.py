"""Schemas of the three tables that every source produces and every later stage reads."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

FEATURES = (
    "purchase_reason",
    "purchase_reason_explanation",
    "product_endorsement",
    "brief_user_summary",
    "long_user_summary",
    "user_profile",
)
"""The output features (paper, appendix B)."""

ITEM_FEATURES = ("purchase_reason", "purchase_reason_explanation", "product_endorsement")
"""Features about one item."""

NEXT_ITEM = "next_item"
"""Feature name of `task=recommend` in records and tables."""

LINE = "line"
"""Optional helper column: the line of the source file that a row comes from."""

POSITION = "position"
"""Optional helper column: order of the rows in the source file. It breaks ties of equal or unknown times."""

ITEMS = pl.Schema(
    {
        "item_id": pl.String(),
        "title": pl.String(),
        "description": pl.String(),
        "category": pl.String(),
        "price": pl.Float64(),
        "brand": pl.String(),
    }
)
INTERACTIONS = pl.Schema(
    {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "timestamp": pl.Int64(),
        "rating": pl.Float64(),
        "review_title": pl.String(),
        "review_text": pl.String(),
    }
)
NARRATIVES = pl.Schema(
    {
        "user_id": pl.String(),
        "feature": pl.String(),
        "item_id": pl.String(),
        "timestamp": pl.Int64(),
        "text": pl.String(),
    }
)
NARRATIVE_KEY = ("user_id", "feature", "item_id", "timestamp")
"""Columns that identify a narrative."""

CRITIQUES = pl.Schema(
    {
        "user_id": pl.String(),
        "from_item_id": pl.String(),
        "to_item_id": pl.String(),
        "timestamp": pl.Int64(),
        "text": pl.String(),
    }
)
"""What a user could say about the first of two adjacent purchases to be led to the second one."""

PLANTED = pl.Schema({"user_id": pl.String(), "label": pl.String(), "value": pl.String(), "forms": pl.List(pl.String())})

MAX_RATING = 5.0
"""Highest rating in prepared tables."""

OnBadRow = Literal["error", "skip"]


class DataError(ValueError):
    """Unusable input data. The message names the file, the row and the fix."""


@dataclass(frozen=True)
class Tables:
    """The tables of a source.

    Attributes:
        items: One row per item. `item_id` is unique; all other columns may be null.
        interactions: One row per purchase. `timestamp` is in Unix seconds, null if the source has no times.
        narratives: One row per text. `item_id` and `timestamp` identify the interaction it is about. Both are null for
            a text about the user.
        planted: Facts that synthetic narratives should name, with the columns of `PLANTED`. `forms` are the lowercase
            words that count as naming the value.
        critiques: Critiques by a narrator or of the source, with the columns of `CRITIQUES` and possibly their origin.
            None if nobody wrote any; then rules write them when a run needs them.
    """

    items: pl.DataFrame
    interactions: pl.DataFrame
    narratives: pl.DataFrame
    planted: pl.DataFrame | None = None
    critiques: pl.DataFrame | None = None


def sort_interactions(interactions: pl.DataFrame) -> pl.DataFrame:
    """Sorts by user, then time (unknown times first), then `position` if the column exists.

    Without a position, content breaks ties, so the result does not depend on the order of the file.
    """
    position = [POSITION] if POSITION in interactions.columns else []
    return interactions.sort("user_id", "timestamp", *position, "item_id", "review_title", "review_text", "rating")


def with_columns_of(schema: pl.Schema, rows: pl.DataFrame) -> pl.DataFrame:
    """Adds the missing columns of the schema, filled with null."""
    missing = [pl.lit(None, dtype=dtype).alias(name) for name, dtype in schema.items() if name not in rows.columns]
    return rows.with_columns(missing)


def nearest(name: str, known: Sequence[str]) -> str:
    """A sentence for error messages: the most similar known name, if one is similar, and all known names."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."
