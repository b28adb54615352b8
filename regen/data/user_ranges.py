"""Sorts and writes tables larger than memory, one range of users at a time."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq


class UserRanges:
    """Partitions interactions into ranges of user ids, so that one range at a time can be sorted in memory.

    The ranges are set after all rows were added. So they have about equal numbers of rows in any order of the file.

    Args:
        folder: For temporary files.
        count: Number of ranges.
    """

    def __init__(self, folder: Path, *, count: int) -> None:
        self.folder = folder
        self.count = count
        self._chunks: list[Path] = []
        self._rows = pl.DataFrame(schema={"user_id": pl.String(), "rows": pl.UInt32()})  # per user

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self._rows)

    def add(self, rows: pl.DataFrame) -> None:
        """Adds rows of any users."""
        self._chunks.append(self.folder / f"chunk-{len(self._chunks):06}.arrow")
        rows.write_ipc(self._chunks[-1], compression="lz4")
        counted = rows.group_by("user_id").agg(rows=pl.len())
        self._rows = pl.concat([self._rows, counted]).group_by("user_id").agg(pl.col("rows").sum())

    def __iter__(self) -> Iterator[pl.DataFrame]:
        users = self._rows.sort("user_id")
        before = users["rows"].cast(pl.Int64).cum_sum() - users["rows"]
        each = max(1, math.ceil(users["rows"].sum() / self.count))
        ranges = users.select("user_id", range=before // each)
        for at, path in enumerate(self._chunks):
            chunk = read_rows(path).join(ranges, on="user_id", maintain_order="left")
            for (number,), part in chunk.partition_by("range", as_dict=True, include_key=False).items():
                part.write_ipc(self.folder / f"{number:05}-{at:06}.arrow", compression="lz4")
            path.unlink()
        for number in ranges["range"].unique().sort():
            files = sorted(self.folder.glob(f"{number:05}-*.arrow"))
            yield pl.concat([read_rows(file) for file in files])
            for file in files:
                file.unlink()


def read_rows(path: Path) -> pl.DataFrame:
    """Reads rows from an Arrow file."""
    with path.open("rb") as file:  # Polars would read a path with brackets as a pattern
        return pl.read_ipc(file)


class ParquetParts:
    """Writes one Parquet file in parts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._writer: Any = None

    def __enter__(self) -> "ParquetParts":
        return self

    def add(self, rows: pl.DataFrame) -> None:
        """Appends rows. All parts must have the same columns."""
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        self._writer = self._writer or pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=2**18)
        self.rows += len(rows)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
