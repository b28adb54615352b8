"""The parts of a table: blocks, their columns of estimates, and the text of a cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from regen.evaluation.identification import chance
from regen.evaluation.statistics import FEW_SEEDS, Estimate
from regen.evaluation.text_metrics import METRICS, OWN, Metric
from regen.runtime.costs import COSTS

Kind = Literal["model", "difference", "floor"]
Status = Literal["failed", "missing"]

LEVEL = 0.05  # probability of any false claim in a table
SHUFFLED = "shuffled"  # the floor that shows whether a model reads the history
CLOSED_FORM = "closed form"  # the column that shows whether the LM of a recommender adds anything
FEW_USERS = 20
ABSENT = "—"
HEADLINES = ("need_recovery", "trait_recovery", "identified_10", "ndcg_10", "similarity")
"""The headline metric of a block is the first of these with a value."""
LEADING = {*HEADLINES, "bleu", "empty", "recall_10", "mrr", "item_traits", "nearest_item"}
"""With planted and custom metrics, the rows that a table leads with; the others are folded."""
_MARK = "†"  # marks a column with faulty runs


@dataclass(frozen=True)
class Column:
    """A column of a block: an estimate per metric, or the reason for having none.

    Attributes:
        name: a value of the compared setting, "both vs cf", "both vs shuffled", or a floor.
        kind: `model`, `difference` or `floor`.
        seeds: number of finished runs that are pooled.
        content: estimates by metric name, or `failed` or `missing` for the whole column.
        costs: costs of a model by their names in `regen.runtime.costs`, means over seeds.
        faults: problems of the runs behind it, for instance "cf: seed 0 wrote only empty texts".
        beside: baseline of the difference by metric, if it is not the same for all metrics.
        verdicts: whether differences of shares come with the verdict of the non-inferiority test.
    """

    name: str
    kind: Kind
    seeds: int
    content: Mapping[str, Estimate] | Status
    costs: Mapping[str, float] = field(default_factory=dict)
    faults: Sequence[str] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    verdicts: bool = False

    @property
    def label(self) -> str:
        """The name, marked if runs behind it are faulty."""
        return f"{self.name} {_MARK}" if self.faults else self.name

    @property
    def caveat(self) -> str:
        """Why its differences have no stars: claims about trainings need three seeds. Empty otherwise."""
        trainings = self.kind == "difference" and not self.name.endswith(f" vs {SHUFFLED}")
        if not trainings or not 0 < self.seeds < FEW_SEEDS:
            return ""
        return f"{plural(self.seeds, 'seed')}: over users, no stars"

    def holds(self, metric: Metric) -> bool:
        """Whether a difference may be claimed: it excludes zero, also after the correction for the whole table."""
        estimate = self.estimate(metric)
        apart = isinstance(estimate, Estimate) and estimate.excludes_zero and estimate.p_holm < LEVEL
        return apart and self.kind == "difference" and not self.caveat and not self.faults

    def estimate(self, metric: Metric) -> Estimate | Status:
        """The estimate of a metric, or the reason for having none."""
        if isinstance(self.content, str):
            return self.content
        return self.content.get(metric.name, Estimate.undefined(f"{metric.display} was not scored in every run"))


@dataclass(frozen=True)
class Block:
    """The part of a table about one feature and one combination of the settings that vary.

    Attributes:
        feature: the output feature.
        settings: the varying settings besides encoder and seed.
        metrics: all metrics by name; those outside `METRICS` appear only in the CSV.
        columns: models, differences, floors.
        users: users of the model columns; the smallest number if they differ.
        notes: notes for the caption: seeds that are not pooled, users left out.
    """

    feature: str
    settings: Mapping[str, str]
    metrics: Mapping[str, Metric]
    columns: Sequence[Column]
    users: int
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """Feature and settings, for instance "purchase_reason · adapter=linear"."""
        return " · ".join([self.feature, *(f"{name}={value}" for name, value in self.settings.items())])

    @property
    def rows(self) -> list[Metric]:
        """The metrics that are rows of a table; the share of empty texts is one only if a model wrote empty texts."""
        rows = [metric for name, metric in self.metrics.items() if name in METRICS or metric.columns[0].startswith(OWN)]
        return [
            metric
            for metric in rows
            if metric.name != "empty" or any(v > 0 for v in self.model_values(metric).values())
        ]

    @property
    def leading_rows(self) -> list[Metric]:
        """The rows that a table leads with; all of them if none is in `LEADING`."""
        leading = [m for m in self.rows if m.name in LEADING or m.is_planted or m.columns[0].startswith(OWN)]
        return leading or self.rows

    @property
    def folded_rows(self) -> list[Metric]:
        """The other rows."""
        leading = self.leading_rows
        return [metric for metric in self.rows if metric not in leading]

    @property
    def headline(self) -> Metric | None:
        """The metric to read the block by; None if no model has a value of any of `HEADLINES`."""
        for metric in (self.metrics[name] for name in HEADLINES if name in self.metrics):
            if self.model_values(metric):
                return metric
        return None

    def model_values(self, metric: Metric) -> dict[str, float]:
        """The values of a metric that are defined, by model."""
        estimates = {column.name: column.estimate(metric) for column in self.models}
        return {
            name: one.value
            for name, one in estimates.items()
            if isinstance(one, Estimate) and not math.isnan(one.value)
        }

    def chances(self) -> str:
        """A sentence with the score of a constant text, for metrics with a chance level; empty otherwise."""
        known = [(metric.display, metric.chance) for metric in self.rows if metric.chance is not None]
        values = (f"{name} {chance(kind, self.users):.3f}" for name, kind in known)
        return f"Chance: {', '.join(values)}." if known and self.users else ""

    def power(self) -> str:
        """A sentence with the smallest difference between models that the block can detect; empty without any."""
        metric = self.headline
        compared = [column for column in self.columns if column.kind == "difference"]
        between = [column for column in compared if not column.name.endswith((f" vs {SHUFFLED}", f" vs {CLOSED_FORM}"))]
        if metric is None or not between:
            return ""
        estimates = [estimate for c in between if isinstance(estimate := c.estimate(metric), Estimate)]
        found = [estimate.detectable for estimate in estimates if estimate.detectable > 0]  # zero if no value differs
        if not found:
            return ""
        unit = "pp" if metric.is_share else "%"
        return f"A difference of {max(found):.1f} {unit} would be found in four of five such experiments."

    @property
    def models(self) -> list[Column]:
        """The columns that are models."""
        return [column for column in self.columns if column.kind == "model"]

    def costs(self) -> list[list[str]]:
        """A table of the cost of each model: a head, then one row per recorded cost. Empty if no run has any."""
        rows = [
            [shown, *(f"{column.costs[name]:.3g}" if name in column.costs else ABSENT for column in self.models)]
            for name, shown in COSTS.items()
            if any(name in column.costs for column in self.models)
        ]
        return [["Cost", *(column.name for column in self.models)], *rows] if rows else []

    def caption(self) -> str:
        """Users, seeds per model, and every note."""
        finished = [column for column in self.models if column.seeds]
        seeds = sorted({column.seeds for column in finished})
        if len(seeds) == 1:
            counted = plural(seeds[0], "seed")
        else:
            counted = "seeds: " + (", ".join(f"{column.name} {column.seeds}" for column in finished) or "none")
        headline = f"Headline: {self.headline.display}." if self.headline else ""
        sentences = [f"{plural(self.users, 'user')}, {counted}.", headline, self.power(), self.chances(), *self.notes]
        if 0 < self.users < FEW_USERS:
            sentences.append(f"So few users ({self.users} of at least {FEW_USERS}) make intervals too narrow to trust.")
        if seeds and seeds[0] < FEW_SEEDS:
            few = "one seed" if seeds[-1] == 1 else "fewer than three seeds"
            sentences.append(f"With {few} an interval covers users only, not training; a claim needs three seeds.")
        sentences += [
            f"{_MARK} {fault}." for fault in dict.fromkeys(f for column in self.columns for f in column.faults)
        ]
        return " ".join(filter(None, sentences))

    def estimate_notes(self, metrics: Sequence[Metric]) -> list[str]:
        """The notes of these metrics' estimates, for instance why one is not defined."""
        notes: dict[str, None] = {}
        for column in self.columns:
            for metric in metrics:
                estimate = column.estimate(metric)
                if isinstance(estimate, Estimate) and estimate.note:
                    notes[f"{column.name}: {estimate.note}."] = None
        return list(notes)


def cell_texts(metric: Metric, column: Column) -> tuple[str, str, str]:
    """Value, interval and remark of one cell; interval and remark may be empty."""
    estimate = column.estimate(metric)
    if isinstance(estimate, str):
        return estimate if column.kind == "model" else ABSENT, "", ""
    if math.isnan(estimate.value):
        return ABSENT, "", ""
    if column.kind != "difference":
        number = f".{metric.decimals}f"
        return f"{estimate.value:{number}}", _interval(estimate, number), ""
    unit = "pp" if metric.is_share else "%"
    value = " ".join(filter(None, [f"{estimate.value:+.1f} {unit}", _star(metric, column, estimate)]))
    beside = f"vs {column.beside[metric.name]}" if metric.name in column.beside else ""
    return value, _interval(estimate, "+.1f"), ", ".join(filter(None, [beside, verdict(metric, column)]))


def verdict(metric: Metric, column: Column) -> str:
    """The verdict of the non-inferiority test, for planted signals in a column with verdicts; empty otherwise."""
    estimate = column.estimate(metric)
    return estimate.verdict() if column.verdicts and metric.is_planted and isinstance(estimate, Estimate) else ""


def _star(metric: Metric, column: Column, estimate: Estimate) -> str:
    """The mark of a difference: `*`, `(*)` or `n.s.`; empty if nothing may be claimed."""
    if column.caveat or column.faults or math.isnan(estimate.low):
        return ""
    return "*" if column.holds(metric) else "(*)" if estimate.excludes_zero else "n.s."


def _interval(estimate: Estimate, number: str) -> str:
    if math.isnan(estimate.low):
        return f"[{ABSENT}]"
    return f"[{estimate.low:{number}}, {estimate.high:{number}}]"


def plural(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
