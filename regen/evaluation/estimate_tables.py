"""Frames of estimates: every metric of every group of examples, with an interval over the group's users."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import polars as pl

from regen.evaluation.statistics import Bootstrap, Estimate
from regen.evaluation.text_metrics import Metric

ESTIMATES = pl.Schema(
    {
        "measure": pl.String(),
        "value": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "users": pl.Int64(),
        "examples": pl.Int64(),
        "note": pl.String(),
    }
)


def estimate_table(
    examples: pl.DataFrame, metrics: Iterable[Metric], *, by: Sequence[str], resamples: int, seed: int
) -> pl.DataFrame:
    """Estimates every metric in every group.

    Args:
        examples: `user_id`, the columns of `by` and the metrics' statistics, one row per example.
        metrics: the metrics.
        by: columns that define the groups; groups with the same users share their resamples.
        resamples: bootstrap resamples of each group's users.
        seed: seed of the resamples.

    Returns:
        The columns of `by`, then those of `ESTIMATES`. `value`, `low` and `high` are null if the metric is not defined,
        and `note` says why. `users` is the number of contributing users, `examples` the number of rows in the group.
    """
    metrics = list(metrics)
    schema = {name: examples.schema[name] for name in by} | dict(ESTIMATES)
    statistics = list(dict.fromkeys(column for metric in metrics for column in metric.columns))
    rows = []
    for group, members in examples.group_by(by, maintain_order=True):
        bootstrap = Bootstrap(members["user_id"], resamples=resamples, seed=seed)
        sums = bootstrap.resample(members.select("user_id", *statistics))
        for metric in metrics:
            estimate = bootstrap.interval(metric, [sums])
            rows.append((*group, metric.name, *_values(estimate), estimate.users, members.height, estimate.note))
    return pl.DataFrame(rows, schema=schema, orient="row")


def _values(estimate: Estimate) -> list[float | None]:
    return [None if math.isnan(value) else value for value in (estimate.value, estimate.low, estimate.high)]
