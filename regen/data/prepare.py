"""Stage `prepare`: from a source to `items.parquet`, `interactions.parquet`, `narratives.parquet` (paper 3.2)."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from regen.data.source import Source
from regen.data.tables import Tables
from regen.storage import identity
from regen.storage.artefacts import Artefact, build

TABLES = ("items", "interactions", "narratives")


def prepare(source: Source, config: Mapping[str, Any], *, root: Path, force: bool = False) -> Artefact:
    """Builds or reuses the prepared tables of a source.

    Args:
        source: The data source.
        config: Config of the source, which identifies the artefact.
        root: Folder of the artefacts.
        force: Build again even if the artefact exists.

    Raises:
        DataError: If the source has unusable rows.
    """

    def make(folder: Path) -> dict[str, int]:
        counts = source.write(folder)
        sizes = {
            name: pl.scan_parquet(folder / f"{name}.parquet", glob=False).select(pl.len()).collect().item()
            for name in TABLES
        }
        return counts | sizes

    return build(**identity.prepared(config, source.files()), root=root, make=make, force=force)


@functools.lru_cache(maxsize=2)  # the cells of a grid read the same tables
def load_tables(folder: Path, *, texts: bool = True) -> Tables:
    """Reads the tables of a prepared artefact. Row numbers elsewhere refer to this order.

    Args:
        folder: Folder of the artefact.
        texts: Whether to read descriptions, reviews, narratives and critiques, which are most of a table's size.
    """
    planted, critiques = folder / "planted.parquet", folder / "critiques.parquet"
    long = () if texts else ("description", "review_title", "review_text", "text")

    def read(name: str) -> pl.DataFrame:
        path = folder / f"{name}.parquet"
        columns = [column for column in pq.read_schema(path).names if column not in long]
        return pl.read_parquet(path, columns=columns, glob=False)

    return Tables(
        items=read("items"),
        interactions=read("interactions"),
        narratives=read("narratives"),
        planted=pl.read_parquet(planted, glob=False) if planted.exists() else None,
        critiques=pl.read_parquet(critiques, glob=False) if texts and critiques.exists() else None,
    )


def item_rows(tables: Tables) -> pl.Series:
    """Row in `items` of each interaction's item."""
    rows = tables.items.with_row_index("item").select("item_id", pl.col("item").cast(pl.Int64))
    return tables.interactions.select("item_id").join(rows, on="item_id", how="left", maintain_order="left")["item"]
