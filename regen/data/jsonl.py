"""Source `jsonl`: anyone's data, three files in one folder, plain or gzipped (`.gz`), one JSON object a line.

`items.jsonl`: what can be bought. Only `item_id` is required; an item without a title is left out of histories. A
`category` may be a list of names, from general to special.

    {"item_id": "B01", "title": "Ruler", "description": "30 cm", "category": "Rulers", "price": 4.5, "brand": "Ax"}

`interactions.jsonl`: who bought what. `user_id` and `item_id` are required. `timestamp` is an ISO 8601 date or time, or
a number: seconds since 1970, or milli-, micro- or nanoseconds, which are recognised by their size. `rating` is above 0
and at most `max_rating`; 0 counts as unknown.

    {"user_id": "u7", "item_id": "B01", "timestamp": "2018-03-02", "rating": 5, "review_text": "Fine"}

`narratives.jsonl`: the references. A text about one purchase names its `item_id` (and `timestamp`, if the user bought
that item more than once); a text about the user names neither. `feature` is one of the six output features.

    {"user_id": "u7", "feature": "purchase_reason", "item_id": "B01", "text": "Needed a ruler for technical drawings."}
    {"user_id": "u7", "feature": "user_profile", "text": "Careful technical drawer"}
"""

from pathlib import Path

import polars as pl

from regen.data.files import find_file, read_jsonl
from regen.data.source import TablesSource
from regen.data.tables import INTERACTIONS, ITEMS, MAX_RATING, NARRATIVES, OnBadRow, Tables
from regen.data.validation import validate

FILES = {"items": "items.jsonl", "interactions": "interactions.jsonl", "narratives": "narratives.jsonl"}


class JsonlSource(TablesSource):
    """Reads the layout above.

    Args:
        folder: Holds the three files.
        on_bad_row: `error` stops at a row that cannot be used, `skip` leaves it out and counts it.
        max_rating: The best rating that these data can have.
    """

    def __init__(self, *, folder: str, on_bad_row: OnBadRow = "error", max_rating: float = MAX_RATING) -> None:
        self.folder = Path(folder)
        self.on_bad_row = on_bad_row
        self.max_rating = max_rating

    def files(self) -> dict[str, Path]:
        """The three input files."""
        return {role: find_file(self.folder, name, setting="source.folder") for role, name in FILES.items()}

    def read(self) -> tuple[Tables, dict[str, int]]:
        """The tables, checked, and the counts of `validate`."""
        items, interactions, narratives = self.files().values()
        tables = Tables(
            items=read_jsonl(items, required=["item_id"], schema=ITEMS, joined={"category": " > "}),
            interactions=_read_timed(interactions, ["user_id", "item_id"], INTERACTIONS),
            narratives=_read_timed(narratives, ["user_id", "feature", "text"], NARRATIVES),
        )
        origin = {"items": str(items), "interactions": str(interactions), "narratives": str(narratives)}
        return validate(tables, on_bad_row=self.on_bad_row, origin=origin, max_rating=self.max_rating)


def _read_timed(path: Path, required: list[str], schema: pl.Schema) -> pl.DataFrame:
    """Rows with their times as they stand in the file."""
    texts = pl.Schema({**schema, "timestamp": pl.String()})
    return read_jsonl(path, required=required, schema=texts, as_text=("timestamp",))
