"""Source `sequences`: items with texts, and ordered purchases without times, ratings or reviews.

`meta*.json[.gz]`: one JSON object per line with `asin`, `title`, `description` (a text or a list), `brand`, `price` and
`category`. Only `asin` is required. `sequences*.json[.gz]`: one JSON object per line with `reviewerID` and
`asin_sequence`, oldest first. These files have no narratives: set `narrator=template` or `openai`. `task=recommend`
needs none.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from regen.data.cleaning import unescape
from regen.data.files import find_file, read_jsonl
from regen.data.source import TablesSource
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, POSITION, OnBadRow, Tables, with_columns_of
from regen.data.validation import validate

_ITEMS = pl.Schema({"asin": pl.String(), **{name: ITEMS[name] for name in ITEMS.names() if name != "item_id"}})
_SEQUENCES = pl.Schema({"reviewerID": pl.String(), "asin_sequence": pl.List(pl.String())})


@dataclass(kw_only=True)
class ItemSequencesSource(TablesSource):
    """Reads the layout above.

    Args:
        folder: Folder with the two files, plain or gzipped.
        metadata: File name of the items.
        sequences: File name of the purchases.
        on_bad_row: `error` stops at an unusable row, `skip` drops and counts it.
    """

    folder: str
    metadata: str
    sequences: str
    on_bad_row: OnBadRow = "error"

    def files(self) -> dict[str, Path]:
        """Items and purchases."""
        names = {"items": self.metadata, "interactions": self.sequences}
        return {role: find_file(self.folder, name, setting="source.folder") for role, name in names.items()}

    def read(self) -> tuple[Tables, dict[str, int]]:
        """Validated tables, and the counts of `validate`."""
        items, sequences = self.files().values()
        rows = read_jsonl(items, required=["asin"], schema=_ITEMS, joined={"description": " ", "category": " > "})
        texts = pl.col("title", "description", "brand").map_elements(unescape, return_dtype=pl.String)
        users = read_jsonl(sequences, required=_SEQUENCES.names(), schema=_SEQUENCES)
        bought = users.explode("asin_sequence").with_columns(pl.int_range(pl.len()).over("reviewerID").alias(POSITION))
        bought = bought.rename({"reviewerID": "user_id", "asin_sequence": "item_id"})
        tables = Tables(
            items=rows.with_columns(texts).rename({"asin": "item_id"}),
            interactions=with_columns_of(INTERACTIONS, bought),
            narratives=pl.DataFrame(schema=NARRATIVES),
        )
        return validate(
            tables, on_bad_row=self.on_bad_row, origin={"items": str(items), "interactions": str(sequences)}
        )
