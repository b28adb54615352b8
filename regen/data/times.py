"""Times as people write them, brought to whole seconds since 1970."""

import math
import re
from datetime import UTC, datetime

import polars as pl

END = 4_102_444_800  # the year 2100, in seconds since 1970
UNITS = {"milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
SMALLEST = 100_000_000  # seconds; a number of a smaller unit is at least as large as this time in it (March 1973)
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d*)?")
_YEAR = re.compile(r"\d{4}")  # a text with a year alone is no time
_DATE = re.compile(r"\d{4}-?\d\d-?\d\d")


def read_times(times: pl.Series) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Seconds since 1970 of a column that holds numbers, or texts with numbers or ISO 8601 dates.

    A number that would lie beyond the year 5000 as seconds is taken for milliseconds, microseconds or nanoseconds, by
    its size.

    Args:
        times: Numbers or texts; null where a time is unknown.

    Returns:
        The seconds, whether each value is no time before 2100, and the unit of each value, null for seconds.
    """
    if times.dtype.is_float():
        times = times.fill_nan(math.inf)
    read = {value: _seconds(value) for value in times.unique()}  # far fewer than rows: days, or unknown
    seconds = pl.Series(times.name, [read[value][0] for value in times], dtype=pl.Int64)
    units = pl.Series("time_unit", [read[value][1] for value in times], dtype=pl.String)
    bad = times.is_not_null() & seconds.is_null()
    return seconds, bad, units


def times_in_units(table: str, units: pl.Series) -> dict[str, int]:
    """Counts of a table's rows by the unit of their times; seconds are not counted."""
    return {f"{table}.times_in_{unit}": count for unit in UNITS if (count := int((units == unit).sum()))}


def _seconds(value: float | str | None) -> tuple[int | None, str | None]:
    """Seconds and unit of one value; no seconds where it is none."""
    if isinstance(value, str):
        text = value.strip()
        if (date := _of_date(text)) is not None:
            return date, None
        if _YEAR.fullmatch(text) or not _NUMBER.fullmatch(text):
            return None, None
        value = float(text) if "." in text else int(text)
    if value is None or not abs(value) < math.inf:
        return None, None
    unit = next((name for name, per_second in reversed(UNITS.items()) if abs(value) >= SMALLEST * per_second), None)
    seconds = int(value // UNITS[unit] if unit else value)
    return (seconds, unit) if -END < seconds < END else (None, None)


def _of_date(text: str) -> int | None:
    if not _DATE.match(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    return seconds if seconds < END else None
