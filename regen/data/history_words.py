"""Texts of items and reviews. `encoder=text` puts them into the prompt, as the baseline of soft tokens."""

import polars as pl

from regen.data.histories import Example
from regen.data.prepare import item_rows
from regen.data.tables import Tables

PRICE = pl.when(pl.col("price").is_not_null()).then(pl.format("{} dollars", pl.col("price").round(2)))
"""Price of each item as text, null if unknown."""


def review_text(interactions: pl.DataFrame) -> pl.Series:
    """Rating and review of each interaction as one text (p_i of paper 4.2); empty if there is neither."""
    rating = pl.when(pl.col("rating").is_not_null()).then(pl.format("{} stars", pl.col("rating")))
    parts = [rating, pl.col("review_title"), pl.col("review_text")]
    return interactions.select(pl.concat_str(parts, separator=". ", ignore_nulls=True).alias("text"))["text"]


class HistoryWords:
    """Describes each interaction of a history in one line: title, category, brand, price, rating and review.

    Args:
        tables: Prepared tables that the examples refer to.
    """

    def __init__(self, tables: Tables) -> None:
        item = pl.concat_str("title", "category", "brand", PRICE, separator=", ", ignore_nulls=True)
        self._items = tables.items.select(item.alias("text"))["text"].gather(item_rows(tables))
        self._reviews = review_text(tables.interactions)

    def __call__(self, example: Example) -> list[str]:
        """One line per interaction, oldest first, without withheld reviews and their ratings."""
        items, reviews = self._items.gather(example.rows), self._reviews.gather(example.rows)
        return [
            f"- {item}. {review}\n" if review and not withheld else f"- {item}\n"
            for item, review, withheld in zip(items, reviews, example.withheld, strict=True)
        ]
