"""`encoder=text`: a history as words in the prompt, the baseline that soft tokens are measured against."""

import polars as pl

from regen.data.histories import Example
from regen.data.prepare import item_rows
from regen.data.tables import Tables


class HistoryWords:
    """Words of each interaction of a history: title, category, brand, price, rating, review.

    Args:
        tables: Prepared tables, whose row numbers the examples hold.
    """

    def __init__(self, tables: Tables) -> None:
        price = pl.when(pl.col("price").is_not_null()).then(pl.format("{} dollars", pl.col("price").round(2)))
        item = pl.concat_str(
            [pl.col("title"), pl.col("category"), pl.col("brand"), price], separator=", ", ignore_nulls=True
        )
        stars = pl.when(pl.col("rating").is_not_null()).then(pl.format("{} stars", pl.col("rating")))
        review = pl.concat_str(
            [stars, pl.col("review_title"), pl.col("review_text")], separator=". ", ignore_nulls=True
        )
        self._items = tables.items.select(item.alias("text"))["text"].gather(item_rows(tables))
        self._reviews = tables.interactions.select(review.alias("text"))["text"]

    def __call__(self, example: Example) -> list[str]:
        """One line per interaction, oldest first; a withheld review and its rating are not in it."""
        items, reviews = self._items.gather(example.rows), self._reviews.gather(example.rows)
        return [
            f"- {item}. {review}\n" if review and not withheld else f"- {item}\n"
            for item, review, withheld in zip(items, reviews, example.withheld, strict=True)
        ]
