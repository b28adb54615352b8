"""The range and the unit of each number of the schema, in one place: what is checked, and what `--help` shows."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Range:
    """Which values of a number are allowed.

    Attributes:
        least: The smallest.
        most: The largest.
        above: Whether `least` itself is too small.
        unit: Of what, "examples of one step".
        also: Values outside that have a meaning, with that meaning.
    """

    least: float
    most: float
    above: bool
    unit: str
    also: dict[float, str]

    def holds(self, value: float) -> bool:
        """Whether a value is allowed; not-a-number never is."""
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
    """A field of the schema that holds a number; the arguments are those of `Range`.

    Args:
        default: The field's value where no YAML file gives one.
    """
    return dataclasses.field(default=default, metadata={"range": Range(least, most, above, unit, also or {})})


def random_seed(unit: str = "of the random numbers") -> Any:
    """A field that holds a seed."""
    return number(0, 2**32 - 1, unit)


def ranges(schema: type) -> dict[str, Range]:
    """The range of each number of one class of the schema."""
    return {item.name: item.metadata["range"] for item in dataclasses.fields(schema) if "range" in item.metadata}


def wrong_numbers(schema: type, values: Any) -> Iterator[tuple[str, Any, Range]]:
    """Name, value and range of each number that is outside its range.

    Args:
        schema: A class of the schema.
        values: Its values by name; those that are missing, null, true or false are skipped.
    """
    for name, allowed in ranges(schema).items():
        value = values.get(name)
        if value is None or isinstance(value, bool):
            continue
        if not isinstance(value, int | float) or not allowed.holds(value):
            yield name, value, allowed
