"""Coordinates of the report's dot plots: one plot per metric with its own scale, a dot and an interval per column."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regen.evaluation.comparison_blocks import Block, Column, cell_texts
from regen.evaluation.statistics import Estimate
from regen.evaluation.text_metrics import Metric

WIDTH, LEFT, RIGHT, ROW, TOP = 340, 84, 14, 24, 10
TICKS = 5


@dataclass(frozen=True)
class Dot:
    """The estimate of a column, in pixels from the left and top edge of the plot."""

    name: str
    kind: str
    x: float
    low: float | None
    high: float | None
    y: float


@dataclass(frozen=True)
class DotPlot:
    """The plot of one metric of one block.

    Attributes:
        metric: Name of the metric.
        dots: Models and floors with a value.
        ticks: Positions and labels on the axis.
        bottom: Vertical position of the axis.
        height: Height of the plot.
        alt: Text alternative.
    """

    metric: str
    dots: Sequence[Dot]
    ticks: Sequence[tuple[float, str]]
    bottom: int
    height: int
    alt: str
    width: int = WIDTH
    left: int = LEFT
    right: int = WIDTH - RIGHT


def dot_plots(block: Block) -> list[DotPlot]:
    """One plot per leading metric of the table, if it has a value."""
    return [plot for metric in block.leading_rows if (plot := _dot_plot(block, metric)) is not None]


def _dot_plot(block: Block, metric: Metric) -> DotPlot | None:
    shown: list[tuple[Column, Estimate]] = []
    for column in block.columns:
        estimate = column.estimate(metric)
        if column.kind != "difference" and isinstance(estimate, Estimate) and not math.isnan(estimate.value):
            shown.append((column, estimate))
    if not shown:
        return None
    ends = [end for _, of in shown for end in (of.value, of.low, of.high) if not math.isnan(end)]
    least, most = min(ends), max(ends)
    margin = 0.06 * (most - least) or 0.1 * abs(most) or 1.0
    least, most = least - margin, most + margin

    def place(value: float) -> float:
        return round(LEFT + (value - least) / (most - least) * (WIDTH - RIGHT - LEFT), 1)

    dots = [
        Dot(
            column.label,
            column.kind,
            place(of.value),
            None if math.isnan(of.low) else place(of.low),
            None if math.isnan(of.high) else place(of.high),
            TOP + ROW * (number + 0.5),
        )
        for number, (column, of) in enumerate(shown)
    ]
    bottom = TOP + ROW * len(dots)
    words = "; ".join(f"{column.label} {' '.join(cell_texts(metric, column)[:2])}" for column, _ in shown)
    step, values = ticks(least, most)
    decimals = max(0, -math.floor(math.log10(step)))
    labels = [(place(value), f"{value:.{decimals}f}") for value in values]
    return DotPlot(metric.display, dots, labels, bottom, bottom + 26, f"{metric.display} with 95 % intervals: {words}.")


def ticks(low: float, high: float) -> tuple[float, list[float]]:
    """The step and positions of about five round tick values within an interval."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    return step, [number * step for number in range(first, last + 1)]
