"""The items of the training data: metadata, CF factors, and a search."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from regen.data.tables import ITEMS

QUERY_WORDS = 12  # a search ignores further words


@dataclass(frozen=True)
class Item:
    """Metadata of an item; None if the data do not have it."""

    item_id: str
    title: str | None
    description: str | None
    category: str | None
    price: float | None
    brand: str | None


class Items:
    """Items by id, in the order of the training data's table.

    Args:
        table: Columns of `items.parquet`; `item_id` is unique.
        factors: CF factor of each item, zero if CF has none; None for an encoder without CF.

    Raises:
        ValueError: If the numbers of factors and items differ.
    """

    def __init__(self, table: pl.DataFrame, factors: Float[np.ndarray, "items factors"] | None = None) -> None:
        if factors is not None and len(factors) != len(table):
            raise ValueError(f"{len(factors):,} CF factors for {len(table):,} items; there has to be one for each.")
        self.table = table.select(ITEMS.names())
        self.factors = factors
        self._rows = dict(zip(table["item_id"], range(len(table)), strict=True))
        parts = [pl.col(name).fill_null("").str.to_lowercase() for name in ("title", "brand", "category")]
        self._words = table.select(title=parts[0], text=pl.concat_str(parts, separator=" "))

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    def get(self, item_id: str) -> Item | None:
        """The item with this id, or None."""
        row = self._rows.get(item_id)
        return None if row is None else Item(**self.table.row(row, named=True))

    def row(self, item_id: str | None) -> int | None:
        """Row of an item in the table, or None."""
        return None if item_id is None else self._rows.get(item_id)

    def search(self, query: str, limit: int = 20) -> list[Item]:
        """Items with a title that contain every word of a query in title, brand or category. Case is ignored.

        Args:
            query: Words or parts of words.
            limit: The most items to return.

        Returns:
            Items with more of the words in their title first, then popular ones (longer CF factors), then those with
            shorter titles.
        """
        words = list(dict.fromkeys(query.lower().encode("utf-8", "replace").decode().split()))[:QUERY_WORDS]
        if not words:
            return []
        found = self._words.select(
            row=pl.int_range(pl.len()),
            hit=pl.all_horizontal(pl.col("title") != "", *_held("text", words)),
            in_title=pl.sum_horizontal(_held("title", words)),
            letters=pl.col("title").str.len_chars(),
        ).filter("hit")
        lengths = self._lengths(found["row"].to_numpy())
        ranked = found.with_columns(length=pl.Series(lengths)).sort(
            "in_title", "length", "letters", "row", descending=[True, True, False, False]
        )
        return [Item(**self.table.row(row, named=True)) for row in ranked["row"].head(limit)]

    def _lengths(self, rows: np.ndarray) -> Float[np.ndarray, " rows"]:
        """L2 norms of CF factors, which grow with an item's popularity."""
        return np.zeros(len(rows)) if self.factors is None else np.linalg.norm(self.factors[rows], axis=1)


def _held(column: str, words: Sequence[str]) -> list[pl.Expr]:
    return [pl.col(column).str.contains(word, literal=True) for word in words]
