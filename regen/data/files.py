"""Reads a user's JSONL and CSV files. Every error names the file and the line."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from regen.data.tables import LINE, DataError


def find_file(folder: str, name: str, *, setting: str) -> Path:
    """Path of the file with that name, or with that name and `.gz`.

    Args:
        folder: Where to look.
        name: File name without `.gz`.
        setting: Config key of the folder, for the error message.

    Raises:
        DataError: If neither file exists.
    """
    for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{Path(folder) / name}: no such file, nor {name}.gz. Set {setting} to its folder.")


def read_jsonl(
    path: Path,
    *,
    required: Sequence[str],
    schema: pl.Schema,
    as_text: Sequence[str] = (),
    joined: Mapping[str, str] = {},
) -> pl.DataFrame:
    """Reads one JSON object per line into one row, with its `line` number.

    Args:
        path: A `.jsonl` or `.jsonl.gz` file.
        required: Keys that every object must have.
        schema: Columns to read. A missing key is null; other keys are ignored.
        as_text: Text columns, besides ids, that may hold numbers. The text of a number has a point ("2018."), which
            distinguishes it from a text ("2018").
        joined: Text columns that may hold lists of texts, and the separator for joining them.

    Raises:
        DataError: If a line is not a JSON object, lacks a key or has a value of the wrong type, or if the file is
            truncated.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # or thousands of digits or nested lists
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
            raise DataError(f"{path}:{number}: not JSON ({reason}): {line.strip()[:80]!r}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: expected a JSON object, found {line.strip()[:80]!r}")
        if missing := [key for key in required if key not in record]:
            raise DataError(f"{path}:{number}: no key {missing[0]!r}; it has {', '.join(map(repr, record))}.")
        rows.append({name: record.get(name) for name in schema.names()} | {LINE: number})
    for row in rows:
        for name in as_text:
            row[name] = _number_as_text(row[name])
        for name, between in joined.items():
            if _is_texts(row[name]):
                row[name] = between.join(part.strip() for part in row[name] if part.strip())
    columns = [_column(path, rows, name, dtype) for name, dtype in schema.items()]
    return pl.DataFrame([*columns, pl.Series(LINE, [row[LINE] for row in rows], dtype=pl.Int64)])


def read_csv(path: Path, *, required: Sequence[str]) -> pl.DataFrame:
    """Reads a CSV file as text columns, with the `line` number of each row.

    Raises:
        DataError: If a column is missing, a row has the wrong number of fields, or the file is truncated.
    """
    reader = csv.reader(_lines(path))
    header = next(reader, [])
    if missing := [name for name in required if name not in header]:
        raise DataError(f"{path}:1: no column {missing[0]!r}; it has {', '.join(map(repr, header))}.")
    columns: list[list[str]] = [[] for _ in header]
    lines = []
    for row in reader:
        number = reader.line_num
        if not row:  # a blank line
            continue
        lines.append(number)
        if len(row) != len(header):
            raise DataError(f"{path}:{number}: {len(row)} fields where the header has {len(header)}: {row[:5]}")
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    frame = pl.DataFrame(dict(zip(header, columns, strict=True)), schema=dict.fromkeys(header, pl.String))
    return frame.with_columns(pl.Series(LINE, lines, dtype=pl.Int64))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):  # noqa: B007
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut off after line {number:,} ({error}). Fetch the file again.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number + 1}: not UTF-8 ({error.reason} at byte {error.start}).") from error


def _number_as_text(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return f"{value}." if isinstance(value, int) else repr(value)


def _column(path: Path, rows: list[dict[str, Any]], name: str, dtype: pl.DataType) -> pl.Series:
    """A typed column. Ids may be whole numbers; any other value of the wrong type is an error."""
    if dtype == pl.List(pl.String):
        for row in rows:
            if not _is_texts(row[name]):
                raise DataError(f"{path}:{row[LINE]}: {name}={str(row[name])[:80]} is not a list of texts.")
            _refuse_half_characters(path, row[LINE], name, "".join(row[name]))
        return pl.Series(name, [row[name] for row in rows], dtype=dtype)
    accepted: tuple[type, ...] = (str,) if dtype == pl.String else (int, float)
    values: list[Any] = []
    for row in rows:
        value: Any = row[name]
        if name.endswith("id") and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, accepted)):
            kind = "text" if dtype == pl.String else "number"
            raise DataError(f"{path}:{row[LINE]}: {name}={value!r} is not a {kind}.")
        if isinstance(value, str):
            _refuse_half_characters(path, row[LINE], name, value)
        try:
            values.append(float(value) if isinstance(value, int | float) else value)
        except OverflowError:
            raise DataError(f"{path}:{row[LINE]}: {name} is a number of too many digits.") from None
    return pl.Series(name, values, dtype=dtype, strict=False)


def _refuse_half_characters(path: Path, line: int, name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}:{line}: {name}={text!r:.80} holds half of a character (a surrogate).") from None
