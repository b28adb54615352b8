"""The contract between sources and everything after them: three tables, checked once."""

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
"""Those that speak of one item."""

NEXT_ITEM = "next_item"
"""What records and tables call the feature of `task=recommend`."""

LINE = "line"
"""Optional helper column of a source: the line of its file that a row stands on."""

POSITION = "position"
"""Optional helper column of a source whose file has an order of its own: it decides among equal or unknown times."""

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
"""What identifies a narrative."""

PLANTED = pl.Schema({"user_id": pl.String(), "label": pl.String(), "value": pl.String(), "forms": pl.List(pl.String())})

MAX_RATING = 5.0
"""The best rating in prepared tables; CF's confidence grows with rating / 5."""

OnBadRow = Literal["error", "skip"]


class DataError(ValueError):
    """Input data that cannot be used; the message names the file, the row and the fix."""


@dataclass(frozen=True)
class Tables:
    """What every source gives.

    Attributes:
        items: One row an item; `item_id` is unique, everything else may be null.
        interactions: One row a purchase; `timestamp` in Unix seconds, null where the source has no times.
        narratives: One row a text; `item_id` and `timestamp` are the interaction it speaks of, null where it speaks of
            the user.
        planted: What a synthetic narrative has to name: user, label, value and the lowercase forms that name the value.
    """

    items: pl.DataFrame
    interactions: pl.DataFrame
    narratives: pl.DataFrame
    planted: pl.DataFrame | None = None


def sort_interactions(interactions: pl.DataFrame) -> pl.DataFrame:
    """Orders by user, then time (unknown times first), then `position` where there is one.

    Without a position ties go by content, so that the order of the file does not matter.
    """
    position = [POSITION] if POSITION in interactions.columns else []
    return interactions.sort("user_id", "timestamp", *position, "item_id", "review_title", "review_text", "rating")


def nearest(name: str, known: Sequence[str]) -> str:
    """A sentence that lists the known names, the most similar one first if one is similar."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."
