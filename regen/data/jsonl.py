"""Source `jsonl`: anyone's data, three files in one folder, plain or gzipped (`.gz`), one JSON object a line.

`items.jsonl`: what can be bought. Only `item_id` is required; an item without a title is left out of histories.

    {"item_id": "B01", "title": "Ruler", "description": "30 cm", "category": "Rulers", "price": 4.5, "brand": "Ax"}

`interactions.jsonl`: who bought what. `user_id` and `item_id` are required; `timestamp` in seconds since 1970 or as an
ISO 8601 date or time, `rating` any positive number.

    {"user_id": "u7", "item_id": "B01", "timestamp": "2018-03-02", "rating": 5, "review_text": "Fine"}

`narratives.jsonl`: the references. A text about one purchase names its `item_id` (and `timestamp`, if the user bought
that item more than once); a text about the user names neither. `feature` is one of the six output features.

    {"user_id": "u7", "feature": "purchase_reason", "item_id": "B01", "text": "Needed a ruler for technical drawings."}
    {"user_id": "u7", "feature": "user_profile", "text": "Careful technical drawer"}
"""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from regen.data.files import find_file, read_jsonl
from regen.data.source import TablesSource
from regen.data.tables import INTERACTIONS, ITEMS, LINE, NARRATIVES, DataError, OnBadRow, Tables, validate

FILES = {"items": "items.jsonl", "interactions": "interactions.jsonl", "narratives": "narratives.jsonl"}
_TIMES = {"timestamp": pl.String()}


class JsonlSource(TablesSource):
    """Reads the layout above.

    Args:
        folder: Holds the three files.
        on_bad_row: `error` stops at a row that cannot be used, `skip` leaves it out and counts it.
    """

    def __init__(self, *, folder: str, on_bad_row: OnBadRow = "error") -> None:
        self.folder = Path(folder)
        self.on_bad_row = on_bad_row

    def files(self) -> dict[str, Path]:
        """The three input files."""
        return {role: find_file(self.folder, name, setting="source.folder") for role, name in FILES.items()}

    def read(self) -> tuple[Tables, dict[str, int]]:
        """The tables, checked, and the counts of `validate`."""
        items, interactions, narratives = self.files().values()
        tables = Tables(
            items=read_jsonl(items, required=["item_id"], schema=ITEMS),
            interactions=_read_timed(interactions, ["user_id", "item_id"], INTERACTIONS),
            narratives=_read_timed(narratives, ["user_id", "feature", "text"], NARRATIVES),
        )
        origin = {"items": str(items), "interactions": str(interactions), "narratives": str(narratives)}
        return validate(tables, on_bad_row=self.on_bad_row, origin=origin)


def _read_timed(path: Path, required: list[str], schema: pl.Schema) -> pl.DataFrame:
    """Rows whose `timestamp` may be a number or an ISO date."""
    rows = read_jsonl(path, required=required, schema=pl.Schema({**schema, **_TIMES}), as_text=("timestamp",))
    seconds = [
        None if text is None else _seconds(text, f"{path}:{line}")
        for text, line in rows.select("timestamp", LINE).iter_rows()
    ]
    return rows.with_columns(pl.Series("timestamp", seconds, dtype=pl.Int64))


def _seconds(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"{where}: timestamp={text!r} is neither whole seconds since 1970 nor an ISO 8601 date."
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
