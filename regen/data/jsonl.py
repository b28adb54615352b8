"""Source `jsonl`: your own data as three files in one folder, plain or gzipped (`.gz`), one JSON object per line.

`items.jsonl`: the catalogue. Only `item_id` is required. Items without a title are left out of histories. `category`
may be a list of names, from general to specific.

    {"item_id": "B01", "title": "Ruler", "description": "30 cm", "category": "Rulers", "price": 4.5, "brand": "Ax"}

`interactions.jsonl`: the purchases. `user_id` and `item_id` are required. `timestamp` is an ISO 8601 date or time, or a
number: seconds since 1970, or milli-, micro- or nanoseconds, which are recognised by their size. `rating` is above 0
and at most `max_rating`; 0 means unknown.

    {"user_id": "u7", "item_id": "B01", "timestamp": "2018-03-02", "rating": 5, "review_text": "Fine"}

`narratives.jsonl`: the reference narratives. A text about one purchase has its `item_id`, and its `timestamp` if the
user bought that item more than once. A text about the user has neither. `feature` is one of the six output features.

    {"user_id": "u7", "feature": "purchase_reason", "item_id": "B01", "text": "Needed a ruler for technical drawings."}
    {"user_id": "u7", "feature": "user_profile", "text": "Careful technical drawer"}
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from regen.data.files import find_file, read_jsonl
from regen.data.source import TablesSource
from regen.data.tables import INTERACTIONS, ITEMS, MAX_RATING, NARRATIVES, OnBadRow, Tables
from regen.data.validation import validate

FILES = {"items": "items.jsonl", "interactions": "interactions.jsonl", "narratives": "narratives.jsonl"}


@dataclass(kw_only=True)
class JsonlSource(TablesSource):
    """Reads the layout above.

    Args:
        folder: Folder with the three files.
        on_bad_row: `error` stops at an unusable row, `skip` drops and counts it.
        max_rating: Highest rating of the scale.
    """

    folder: str
    on_bad_row: OnBadRow = "error"
    max_rating: float = MAX_RATING

    def files(self) -> dict[str, Path]:
        """The three input files."""
        return {role: find_file(self.folder, name, setting="source.folder") for role, name in FILES.items()}

    def read(self) -> tuple[Tables, dict[str, int]]:
        """Validated tables, and the counts of `validate`."""
        items, interactions, narratives = self.files().values()
        tables = Tables(
            items=read_jsonl(items, required=["item_id"], schema=ITEMS, joined={"category": " > "}),
            interactions=_read_timed(interactions, ["user_id", "item_id"], INTERACTIONS),
            narratives=_read_timed(narratives, ["user_id", "feature", "text"], NARRATIVES),
        )
        origin = {"items": str(items), "interactions": str(interactions), "narratives": str(narratives)}
        return validate(tables, on_bad_row=self.on_bad_row, origin=origin, max_rating=self.max_rating)


def _read_timed(path: Path, required: list[str], schema: pl.Schema) -> pl.DataFrame:
    """Reads a file, and keeps its times as text."""
    texts = pl.Schema({**schema, "timestamp": pl.String()})
    return read_jsonl(path, required=required, schema=texts, as_text=("timestamp",))
