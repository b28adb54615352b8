"""What a table is made of: blocks of columns of estimates, and how one of them reads."""

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

LEVEL = 0.05  # of a false claim in a table
SHUFFLED = "shuffled"  # the floor that tells whether a model reads
CLOSED_FORM = "closed form"  # the column that tells whether the LM of a recommender adds anything
FEW_USERS = 20
ABSENT = "—"
EMPTY = "empty"  # the metric of empty texts
HEADLINES = ("need_recovery", "trait_recovery", "identified_10", "ndcg_10", "similarity")
"""The metric that a table is read by is the first of these that has a value."""
_MARK = "†"  # of a column that something is wrong with


@dataclass(frozen=True)
class Column:
    """A column of a block and, for each metric, its estimate; or the reason why it has none.

    Attributes:
        name: value of the setting that is compared, "both vs cf", "both vs shuffled" or floor.
        kind: what it holds.
        seeds: finished runs that are pooled in it.
        content: estimates by metric name, or `failed` or `missing` for the whole column.
        costs: of an encoder by their names in `regen.runtime.costs`, means over seeds.
        faults: what is wrong with runs that it is made of, "cf: seed 0 wrote only empty texts".
        beside: by metric, what the difference is from, where that is not the same for all metrics.
        verdicts: whether a share's difference is shown with the verdict of the non-inferiority test.
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
        """The name, marked where something is wrong with it."""
        return f"{self.name} {_MARK}" if self.faults else self.name

    @property
    def caveat(self) -> str:
        """Why none of its differences is starred: one between trainings takes three seeds. Empty otherwise."""
        trainings = self.kind == "difference" and not self.name.endswith(f" vs {SHUFFLED}")
        if not trainings or not 0 < self.seeds < FEW_SEEDS:
            return ""
        return f"{plural(self.seeds, 'seed')}: over users, no stars"

    def holds(self, metric: Metric) -> bool:
        """Whether a difference is apart from zero, corrected for all of its table, and may be claimed."""
        estimate = self.estimate(metric)
        apart = isinstance(estimate, Estimate) and estimate.excludes_zero and estimate.p_holm < LEVEL
        return apart and self.kind == "difference" and not self.caveat and not self.faults

    def estimate(self, metric: Metric) -> Estimate | Status:
        """The estimate of a metric, or why the column has none."""
        if isinstance(self.content, str):
            return self.content
        return self.content.get(metric.name, Estimate.undefined(f"{metric.display} was not scored in every run"))


@dataclass(frozen=True)
class Block:
    """One feature under one combination of the settings that vary.

    Attributes:
        feature: the output feature.
        settings: the varying settings besides encoder and seed.
        metrics: all metrics by name; those in `METRICS` are rows of a table, the others are in the CSV only.
        columns: encoders in the paper's order, differences, floors.
        users: users of the encoder columns, the fewest where they differ.
        notes: what a reader must know: pooled seeds, users left out.
    """

    feature: str
    settings: Mapping[str, str]
    metrics: Mapping[str, Metric]
    columns: Sequence[Column]
    users: int
    notes: Sequence[str]

    @property
    def title(self) -> str:
        """Feature and settings, "purchase_reason · adapter=linear"."""
        return " · ".join([self.feature, *(f"{name}={value}" for name, value in self.settings.items())])

    @property
    def rows(self) -> list[Metric]:
        """The metrics that are rows of a table; the share of empty texts only where there are any."""
        rows = [metric for name, metric in self.metrics.items() if name in METRICS or metric.columns[0].startswith(OWN)]
        return [metric for metric in rows if metric.name != EMPTY or self._writes_empty_texts(metric)]

    def _writes_empty_texts(self, metric: Metric) -> bool:
        estimates = [column.estimate(metric) for column in self.columns if column.kind == "model"]
        return any(isinstance(estimate, Estimate) and estimate.value > 0 for estimate in estimates)

    @property
    def headline(self) -> Metric | None:
        """The metric to read the block by; None where no model has a value of any of `HEADLINES`."""
        models = [column for column in self.columns if column.kind == "model"]
        for metric in (self.metrics[name] for name in HEADLINES if name in self.metrics):
            estimates = [column.estimate(metric) for column in models]
            if any(isinstance(estimate, Estimate) and not math.isnan(estimate.value) for estimate in estimates):
                return metric
        return None

    def chances(self) -> str:
        """What a text that is the same for everyone scores, where the metrics say; empty otherwise."""
        known = [(metric.display, metric.chance) for metric in self.rows if metric.chance is not None]
        values = (f"{name} {chance(kind, self.users):.3f}" for name, kind in known)
        return f"Chance: {', '.join(values)}." if known and self.users else ""

    def power(self) -> str:
        """The smallest difference between models that the block could find; empty where none is compared."""
        metric = self.headline
        compared = [column for column in self.columns if column.kind == "difference"]
        between = [column for column in compared if not column.name.endswith((f" vs {SHUFFLED}", f" vs {CLOSED_FORM}"))]
        if metric is None or not between:
            return ""
        estimates = [estimate for c in between if isinstance(estimate := c.estimate(metric), Estimate)]
        found = [estimate.detectable for estimate in estimates if not math.isnan(estimate.low)]
        if not found:
            return ""
        unit = "pp" if metric.is_share else "%"
        return f"A difference of {max(found):.1f} {unit} would be found in four of five such experiments."

    @property
    def models(self) -> int:
        """How many columns are models."""
        return sum(column.kind == "model" for column in self.columns)

    def costs(self) -> list[list[str]]:
        """A table of what each encoder cost: a head, then a row per cost that any run recorded."""
        encoders = [column for column in self.columns if column.kind == "model"]
        rows = [
            [shown, *(f"{column.costs[name]:.3g}" if name in column.costs else ABSENT for column in encoders)]
            for name, shown in COSTS.items()
            if any(name in column.costs for column in encoders)
        ]
        return [["Cost", *(column.name for column in encoders)], *rows] if rows else []

    def caption(self) -> str:
        """Users, seeds per encoder, and every note."""
        encoders = [column for column in self.columns if column.kind == "model" and column.seeds]
        seeds = sorted({column.seeds for column in encoders})
        if len(seeds) == 1:
            counted = plural(seeds[0], "seed")
        else:
            counted = "seeds: " + (", ".join(f"{column.name} {column.seeds}" for column in encoders) or "none")
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

    def estimate_notes(self) -> list[str]:
        """What the estimates of the table's rows have to say, for instance why one is not defined."""
        notes: dict[str, None] = {}
        for column in self.columns:
            for metric in self.rows:
                estimate = column.estimate(metric)
                if isinstance(estimate, Estimate) and estimate.note:
                    notes[f"{column.name}: {estimate.note}."] = None
        return list(notes)


def cell_texts(metric: Metric, column: Column) -> tuple[str, str, str]:
    """Value, interval and remark of one place in a table; the last two are empty where there is none."""
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
    """Of the non-inferiority test, in a column that has them; empty otherwise, and for what is not a planted signal."""
    estimate = column.estimate(metric)
    return estimate.verdict() if column.verdicts and metric.is_planted and isinstance(estimate, Estimate) else ""


def _star(metric: Metric, column: Column, estimate: Estimate) -> str:
    """How sure a difference is; empty where that cannot be said."""
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
