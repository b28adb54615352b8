"""Streams ratings in CSV files, such as the 5-core files of Amazon Reviews 2023, into Polars."""

from pathlib import Path

import polars as pl

from regen.data.json_lines import Lines
from regen.data.tables import DataError


def is_csv(path: Path) -> bool:
    """Whether the name of a file says CSV: `Books.csv`, `Books.train.csv.gz`."""
    return ".csv" in path.suffixes


class RatingLines(Lines):
    """Reads a CSV file whose first line names the columns.

    Values are ids and numbers, so they are never quoted. A line with more or fewer values than the first is dropped and
    counted. A number that cannot be read is null.
    """

    def __init__(self, path: Path, schema: pl.Schema) -> None:
        super().__init__(path, schema)
        self._header: list[str] = []

    def _parse(self, text: bytes) -> pl.DataFrame:
        lines = pl.Series("line", text.decode(errors="replace").split("\n"), dtype=pl.String).str.strip_chars()
        lines = lines.filter(lines != "")
        if not self._header and len(lines):
            self._header, lines = self._read_header(lines[0]), lines[1:]
        if lines.is_empty():
            return self.schema.to_frame()
        commas = len(self._header) - 1
        whole = lines.str.count_matches(",", literal=True) == commas
        self.lines += len(lines)
        self.malformed += len(lines) - int(whole.sum())
        values = lines.filter(whole).str.split_exact(",", commas).struct.rename_fields(self._header).struct.unnest()
        return values.select(
            (pl.col(name).cast(kind, strict=False) if name in self._header else pl.lit(None, kind)).alias(name)
            for name, kind in self.schema.items()
        )

    def _read_header(self, line: str) -> list[str]:
        header = line.split(",")
        required = list(self.schema)[:4]
        if missing := [name for name in required if name not in header]:
            raise DataError(
                f"{self.path}: the first line has no column {missing[0]!r}; it is {line[:80]!r}. The 5-core files "
                f"begin with {','.join(required)}, some with a history after it."
            )
        return header
