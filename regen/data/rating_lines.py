"""Streams ratings in CSV files, such as the 5-core files of Amazon Reviews 2023, into Polars."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from regen.data.json_lines import whole_lines
from regen.data.tables import DataError


def is_csv(path: Path) -> bool:
    """Whether a file is CSV by its name: `Books.csv`, `Books.train.csv.gz`."""
    return ".csv" in path.suffixes


class RatingLines:
    """Reads one file, chunk by chunk, with the interface of `JsonLines`.

    The first line names the columns. Values are never quoted: they are ids and numbers. A line with more or fewer
    values than the first is left out and counted. A number that cannot be read is null.

    Args:
        path: A CSV file, plain or gzipped.
        schema: Columns to take; text columns that the file lacks are null, other columns of the file are ignored.

    Attributes:
        lines: How many lines were read so far, without blank ones and the first.
        malformed: How many of them were left out.
    """

    def __init__(self, path: Path, schema: pl.Schema) -> None:
        self.path = path
        self.schema = schema
        self.lines = 0
        self.malformed = 0

    def chunks(self) -> Iterator[pl.DataFrame]:
        """The file's rows in its order, about 32 MB of text at a time.

        Raises:
            DataError: If the file is missing, damaged or cut off, or its first line does not name the columns.
        """
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file.")
        header: list[str] | None = None
        for text in whole_lines(self.path):
            lines = pl.Series("line", text.decode(errors="replace").split("\n"), dtype=pl.String).str.strip_chars()
            lines = lines.filter(lines != "")
            if header is None and len(lines):
                header, lines = self._header(lines[0]), lines[1:]
            if header is not None and not (rows := self._parse(lines, header)).is_empty():
                yield rows

    def _header(self, line: str) -> list[str]:
        header = line.split(",")
        if missing := [name for name in list(self.schema)[:4] if name not in header]:
            raise DataError(
                f"{self.path}: the first line names no column {missing[0]!r}; it is {line[:80]!r}. Of the 5-core files "
                f"it is {','.join(list(self.schema)[:4])}, in some with a history behind it."
            )
        return header

    def _parse(self, lines: pl.Series, header: list[str]) -> pl.DataFrame:
        whole = lines.str.count_matches(",", literal=True) == len(header) - 1
        self.lines += len(lines)
        self.malformed += len(lines) - int(whole.sum())
        values = lines.filter(whole).str.split_exact(",", len(header) - 1).struct.rename_fields(header).struct.unnest()
        return values.select(
            (pl.col(name).cast(kind, strict=False) if name in header else pl.lit(None, kind)).alias(name)
            for name, kind in self.schema.items()
        )
