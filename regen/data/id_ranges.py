"""Sorts and writes tables larger than memory, one range of ids at a time."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

RANGE_BYTES = 256 * 2**20  # size of a range in memory before it is sorted


class IdRanges:
    """Partitions rows into ranges of user ids or item ids, so that one range at a time can be sorted in memory.

    The ranges are set after all rows were added. So they have about equal numbers of rows in any order of the file, and
    about `RANGE_BYTES` each.

    Args:
        folder: For temporary files; created here, and removed when the last range was read.
        key: Name of the column with the ids.
    """

    def __init__(self, folder: Path, key: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.key = key
        self._chunks: list[Path] = []
        self._bytes = 0
        self._rows = pl.DataFrame(schema={key: pl.String(), "rows": pl.UInt32()})  # per id

    def __len__(self) -> int:
        """Number of ids."""
        return len(self._rows)

    @property
    def count(self) -> int:
        """Number of ranges."""
        return max(1, math.ceil(self._bytes / RANGE_BYTES))

    def add(self, rows: pl.DataFrame) -> None:
        """Adds rows of any ids."""
        self._chunks.append(self.folder / f"chunk-{len(self._chunks):06}.arrow")
        rows.write_ipc(self._chunks[-1], compression="lz4")
        self._bytes += int(rows.estimated_size())
        counted = rows.group_by(self.key).agg(rows=pl.len())
        self._rows = pl.concat([self._rows, counted]).group_by(self.key).agg(pl.col("rows").sum())

    def __iter__(self) -> Iterator[pl.DataFrame]:
        ids = self._rows.sort(self.key)
        before = ids["rows"].cast(pl.Int64).cum_sum() - ids["rows"]
        each = max(1, math.ceil(ids["rows"].sum() / self.count))
        ranges = ids.select(self.key, range=before // each)
        for at, path in enumerate(self._chunks):
            chunk = read_rows(path).join(ranges, on=self.key, maintain_order="left")
            for (number,), part in chunk.partition_by("range", as_dict=True, include_key=False).items():
                part.write_ipc(self.folder / f"{number:05}-{at:06}.arrow", compression="lz4")
            path.unlink()
        for number in ranges["range"].unique().sort():
            files = sorted(self.folder.glob(f"{number:05}-*.arrow"))
            yield pl.concat([read_rows(file) for file in files])
            for file in files:
                file.unlink()
        self.folder.rmdir()


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
