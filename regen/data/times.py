"""Reads times in any common notation as whole seconds since 1970."""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

END = 4_102_444_800  # the year 2100, in seconds since 1970
UNITS = {"milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
SMALLEST = 100_000_000  # March 1973; a number in a smaller unit is at least this time in that unit
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d*)?")
_YEAR = re.compile(r"\d{4}")  # a year alone is not a time
_DATE = re.compile(r"\d{4}-?\d\d-?\d\d")


def read_times(times: pl.Series) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Converts a column of numbers, or of texts with numbers or ISO 8601 dates, to seconds since 1970.

    The size of a number decides its unit: seconds before the year 5000, else milli-, micro- or nanoseconds.

    Args:
        times: Numbers or texts; null where a time is unknown.

    Returns:
        The seconds, a mask of values that are not a time before 2100, and the unit of each value (null for seconds).
    """
    if times.dtype.is_float():
        return _read_numbers(times)
    read = {value: _seconds(value) for value in times.unique()}
    seconds = pl.Series(times.name, [read[value][0] for value in times], dtype=pl.Int64)
    units = pl.Series("time_unit", [read[value][1] for value in times], dtype=pl.String)
    bad = times.is_not_null() & seconds.is_null()
    return seconds, bad, units


def times_in_units(table: str, units: pl.Series) -> dict[str, int]:
    """Counts a table's rows by the unit of their times, except seconds."""
    return {f"{table}.times_in_{unit}": count for unit in UNITS if (count := int((units == unit).sum()))}


def _read_numbers(times: pl.Series) -> tuple[pl.Series, pl.Series, pl.Series]:
    """`read_times` for numbers, without a loop over distinct values: millisecond times rarely repeat."""
    value = pl.col("value")
    divisor = pl.lit(1)
    for per_second in UNITS.values():
        divisor = pl.when(value.abs() >= SMALLEST * per_second).then(per_second).otherwise(divisor)
    rows = times.alias("value").to_frame().select("value", divisor=divisor.cast(pl.Int64))
    whole = pl.when(pl.col("divisor") == 1).then(value).otherwise((value / pl.col("divisor")).floor())
    inside = value.is_finite() & (whole > -END) & (whole < END)
    rows = rows.with_columns(seconds=pl.when(inside).then(whole).cast(pl.Int64, strict=False))
    seconds = rows["seconds"].alias(times.name)
    name_of = {per_second: unit for unit, per_second in UNITS.items()}
    unit = pl.when(seconds.is_not_null()).then(pl.col("divisor").replace_strict(name_of, default=None))
    units = rows.select(time_unit=unit.cast(pl.String))["time_unit"]
    return seconds, times.is_not_null() & seconds.is_null(), units


@dataclass(frozen=True)
class TimeWindow:
    """A span of time, in seconds since 1970; false if it is unbounded.

    Attributes:
        since: First second in the window, None for no start.
        until: First second after the window, None for no end.
    """

    since: int | None = None
    until: int | None = None

    @staticmethod
    def between(since: str | None, until: str | None, *, setting: str) -> "TimeWindow":
        """Parses the settings `<setting>.since` and `<setting>.until`.

        Raises:
            ValueError: If one is not a date, or `since` is not before `until`.
        """
        ends = {f"{setting}.since": since, f"{setting}.until": until}
        window = TimeWindow(*(None if date is None else seconds_of(date, setting=key) for key, date in ends.items()))
        if window.since is not None and window.until is not None and window.since >= window.until:
            raise ValueError(f"{setting}.since={since} has to be before {setting}.until={until}.")
        return window

    def holds(self, column: str) -> pl.Expr:
        """Mask of the column's times that are in the window. An unknown time is not."""
        inside = pl.col(column).is_not_null()
        inside = inside if self.since is None else inside & (pl.col(column) >= self.since)
        inside = inside if self.until is None else inside & (pl.col(column) < self.until)
        return inside.fill_null(False)

    def __bool__(self) -> bool:
        return self.since is not None or self.until is not None

    def __str__(self) -> str:
        ends = {"since": self.since, "until": self.until}
        return " ".join(
            f"{name} {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M}" for name, end in ends.items() if end is not None
        )


def seconds_of(date: str, *, setting: str) -> int:
    """Parses the date of a setting to seconds since 1970.

    Raises:
        ValueError: If it is not a date.
    """
    seconds, _ = _seconds(date)
    if seconds is None:
        raise ValueError(f"{setting}={date} must be a date such as 2018-05-01, or seconds since 1970.")
    return seconds


def _seconds(value: float | str | None) -> tuple[int | None, str | None]:
    """Seconds and unit of one value; (None, None) if it is not a time."""
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
