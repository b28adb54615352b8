"""Ranges and units of the numbers in the schema; they are checked, and shown by `--help`."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Range:
    """The allowed values of a number.

    Attributes:
        least: The smallest value.
        most: The largest value.
        above: Whether `least` itself is excluded.
        unit: What the number counts or measures.
        also: Allowed values outside the range, and their meanings.
    """

    least: float
    most: float
    above: bool
    unit: str
    also: dict[float, str]

    def holds(self, value: float) -> bool:
        """Whether a value is allowed; NaN never is."""
        inside = (self.least < value if self.above else self.least <= value) and value <= self.most
        return inside or value in self.also

    def __str__(self) -> str:
        least = f"above {self.least:,}" if self.above else f"{self.least:,}"
        meanings = "".join(f", or {value} for {meaning}" for value, meaning in self.also.items())
        return f"{least} to {self.most:,}{meanings}"


def number(
    least: float,
    most: float,
    unit: str,
    *,
    above: bool = False,
    also: dict[float, str] | None = None,
    default: Any = MISSING,
) -> Any:
    """A dataclass field for a number. The arguments are its `default` and those of `Range`."""
    return dataclasses.field(default=default, metadata={"range": Range(least, most, above, unit, also or {})})


def random_seed(unit: str = "random seed") -> Any:
    """A dataclass field for a random seed."""
    return number(0, 2**32 - 1, unit)


def ranges(schema: type) -> dict[str, Range]:
    """The range of each number in a class of the schema, by its name."""
    return {item.name: item.metadata["range"] for item in dataclasses.fields(schema) if "range" in item.metadata}


def wrong_numbers(schema: type, values: Any) -> Iterator[tuple[str, Any, Range]]:
    """Yields name, value and range of each number that is out of its range.

    Args:
        schema: A class of the schema.
        values: Values by name; missing, null and boolean values are skipped.
    """
    for name, allowed in ranges(schema).items():
        value = values.get(name)
        if value is None or isinstance(value, bool):
            continue
        if not isinstance(value, int | float) or not allowed.holds(value):
            yield name, value, allowed
