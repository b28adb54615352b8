"""Numbers are read without a loop, and as the loop over texts reads them."""

import math

import polars as pl
import pytest

from regen.data.times import END, SMALLEST, UNITS, read_times

SIZES = [1, *UNITS.values()]
VALUES = [
    *(sign * SMALLEST * size + step for size in SIZES for sign in (1, -1) for step in (-1, 0, 1)),
    *(sign * (END * size + step * size) for size in SIZES for sign in (1, -1) for step in (-1, 0, 1)),
    *(1_588_615_855 * size + size // 2 for size in SIZES),
    *(0, -5, 2018, 10**20),
]


@pytest.mark.parametrize("value", VALUES)
def test_a_number_is_read_as_its_text(value):
    number, text = (read_times(pl.Series([values])) for values in (float(value), f"{float(value):.1f}"))
    for one, other in zip(number, text, strict=True):
        assert one.equals(other)


def test_a_column_of_numbers_keeps_its_order_and_counts_its_units():
    times = pl.Series("t", [None, 1.5e9, math.nan, 1.5e12, -math.inf, -0.5, 1.5e18, 9e9])
    seconds, bad, units = read_times(times)
    assert seconds.to_list() == [None, 1_500_000_000, None, 1_500_000_000, None, 0, 1_500_000_000, None]
    assert bad.to_list() == [False, False, True, False, True, False, False, True]
    assert units.to_list() == [None, None, None, "milliseconds", None, None, "nanoseconds", None]
    assert seconds.name == "t"
