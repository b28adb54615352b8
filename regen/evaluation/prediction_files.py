"""Readers of prediction files, ours or another system's."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

SCHEMA = dict.fromkeys(("user_id", "feature", "item_id", "prediction", "reference"), pl.String)


def read_predictions(path: Path, *, named: bool = True) -> pl.DataFrame:
    """Reads a `.jsonl` or `.jsonl.gz` file of predictions and references.

    Every line is an object with `prediction` and `reference`. Either all lines or none have `user_id`; without it each
    row counts as one user, named by its number from 1. `feature` (default "narrative") and `item_id` are optional.
    Blank lines are skipped.

    Args:
        path: The file.
        named: False leaves `user_id` and `feature` null where the file does not give them.

    Returns:
        Columns `user_id, feature, item_id, prediction, reference`, all strings, in the file's order.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is empty, cut off, or has a bad line; the message gives file, line and fix.
    """
    rows: list[dict[str, str | None]] = []
    with_users = False
    for where, record in _records(path, "predictions"):
        if not rows:
            with_users = "user_id" in record
        elif with_users != ("user_id" in record):
            state = "has" if "user_id" in record else "has no"
            raise ValueError(f"{where}: this line {state} 'user_id', unlike the first; give it on all or none.")
        rows.append(
            {
                "user_id": _identifier(record, "user_id", where)
                if with_users
                else str(len(rows) + 1)
                if named
                else None,
                "feature": _text(record, "feature", where) if "feature" in record else "narrative" if named else None,
                "item_id": None if record.get("item_id") is None else _identifier(record, "item_id", where),
                "prediction": _text(record, "prediction", where),
                "reference": _text(record, "reference", where, may_be_blank=False),
            }
        )
    found = pl.DataFrame(rows, schema=SCHEMA)
    if not named:
        return found
    number = pl.int_range(1, pl.len() + 1).cast(pl.String)
    return found.with_columns(pl.col("user_id").fill_null(number), pl.col("feature").fill_null("narrative"))


def read_recommendations(path: Path) -> dict[str, list[str]]:
    """Reads a `.jsonl` or `.jsonl.gz` file of rankings: every line has a `user_id` and its `items`, best first.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is empty, cut off, or has a bad line; the message gives file, line and fix.
    """
    found: dict[str, list[str]] = {}
    for where, record in _records(path, "recommendations"):
        user, items = _identifier(record, "user_id", where), _value(record, "items", where)
        if not isinstance(items, list) or not items:
            raise ValueError(f"{where}: 'items' is {_shown(items)}; it must be a list of item ids, best first.")
        if user in found:
            raise ValueError(f"{where}: user {user!r} has a line already; give each user one line.")
        named = [_identifier({"items": item}, "items", where) for item in items]
        if len(set(named)) < len(named):
            twice = next(item for item in named if named.count(item) > 1)
            raise ValueError(f"{where}: item {twice!r} is named twice.")
        found[user] = named
    return found


def _records(path: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place ("FILE:LINE") and JSON object of every line that is not blank; fails without any."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of {kind}; give a .jsonl or .jsonl.gz file.")
    number, empty = 0, True
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    empty = False
                    yield f"{path}:{number}", _record(line, f"{path}:{number}")
        if empty:
            raise ValueError(f"{path}: no {kind}, the file has 0 lines with content.")
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}:{number + 1}: damaged or cut off gzip file ({error}); copy it again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number + 1}: not UTF-8 text ({error.reason}); save the file as UTF-8.") from error


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg}, column {error.colno}); write one object a line.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: the line holds a {type(record).__name__}; write one JSON object a line.")
    return record


def _value(record: dict[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise ValueError(f"{where}: no key {key!r}; the line has {', '.join(sorted(record)) or 'no key'}.")
    return record[key]


def _text(record: dict[str, Any], key: str, where: str, *, may_be_blank: bool = True) -> str:
    value = _value(record, key, where)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} is {_shown(value)}; it must be a string.")
    if not may_be_blank and not value.strip():
        raise ValueError(f"{where}: {key!r} is blank; leave out lines without a {key}.")
    return value


def _identifier(record: dict[str, Any], key: str, where: str) -> str:
    value = _value(record, key, where)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"{where}: {key!r} is {_shown(value)}; it must be a non-empty string or an integer.")
    return str(value)


def _shown(value: object) -> str:
    return "NaN" if isinstance(value, float) and math.isnan(value) else json.dumps(value, ensure_ascii=False)[:60]
