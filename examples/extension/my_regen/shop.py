"""A source: the purchases of a shop in one JSON file."""

import json
from pathlib import Path

import polars as pl

from regen.data.source import TablesSource
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, DataError, Tables


class Shop(TablesSource):
    """A file with `products`, `purchases` and `reasons`.

    Args:
        path: Of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def files(self) -> dict[str, Path]:
        if not self.path.is_file():
            raise DataError(f"source.path={self.path}: no such file. Give the JSON file of your shop.")
        return {"shop": self.path}

    def read(self) -> tuple[Tables, dict[str, int]]:
        shop = json.loads(self.path.read_text(encoding="utf-8"))
        items = pl.DataFrame(shop["products"], schema=ITEMS)
        interactions = pl.DataFrame(shop["purchases"], schema=INTERACTIONS).sort("user_id", "timestamp", "item_id")
        last = interactions.group_by("user_id", maintain_order=True).last().select("user_id", "item_id", "timestamp")
        reasons = pl.DataFrame(shop["reasons"], schema={"user_id": pl.String, "text": pl.String}).join(
            last, on="user_id"
        )
        narratives = reasons.with_columns(feature=pl.lit("purchase_reason")).select(NARRATIVES.names())
        return Tables(items, interactions, narratives), {"items.read": len(items)}
