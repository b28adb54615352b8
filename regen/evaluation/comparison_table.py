"""The comparison as Markdown, CSV and terminal text, laid out like the paper's Table 1 with intervals and floors."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from textwrap import fill
from typing import Literal

from regen.artefacts import write_atomically
from regen.costs import COSTS
from regen.evaluation.statistics import Estimate
from regen.evaluation.text_metrics import METRICS, Metric

Kind = Literal["encoder", "difference", "floor"]
Status = Literal["failed", "missing"]

LEVEL = 0.05  # of a false claim in a table
SHUFFLED = "shuffled"  # the floor that tells whether a model reads
FEW_USERS, FEW_SEEDS = 20, 3
_TERMINAL_WIDTH = 120
_ABSENT = "—"


@dataclass(frozen=True)
class Column:
    """A column of a block and, for each metric, its estimate; or the reason why it has none.

    Attributes:
        name: encoder, "both vs cf", "both vs shuffled" or floor.
        kind: what it holds.
        seeds: finished runs that are pooled in it.
        content: estimates by metric name, or `failed` or `missing` for the whole column.
        costs: of an encoder by their names in `regen.costs`, means over seeds.
    """

    name: str
    kind: Kind
    seeds: int
    content: Mapping[str, Estimate] | Status
    costs: Mapping[str, float] = field(default_factory=dict)

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
        """The metrics that are rows of a table."""
        return [metric for name, metric in self.metrics.items() if name in METRICS]

    def costs(self) -> list[list[str]]:
        """A table of what each encoder cost: a head, then a row per cost that any run recorded."""
        encoders = [column for column in self.columns if column.kind == "encoder"]
        rows = [
            [shown, *(f"{column.costs[name]:.3g}" if name in column.costs else _ABSENT for column in encoders)]
            for name, shown in COSTS.items()
            if any(name in column.costs for column in encoders)
        ]
        return [["Cost", *(column.name for column in encoders)], *rows] if rows else []

    def caption(self) -> str:
        """Users, seeds per encoder, and every note."""
        encoders = [column for column in self.columns if column.kind == "encoder" and column.seeds]
        seeds = sorted({column.seeds for column in encoders})
        if len(seeds) == 1:
            counted = _plural(seeds[0], "seed")
        else:
            counted = "seeds: " + (", ".join(f"{column.name} {column.seeds}" for column in encoders) or "none")
        sentences = [f"{_plural(self.users, 'user')}, {counted}.", *self.notes]
        if 0 < self.users < FEW_USERS:
            sentences.append(f"So few users ({self.users} of at least {FEW_USERS}) make intervals too narrow to trust.")
        if seeds and seeds[0] == 1:
            sentences.append("With one seed an interval covers users only, not training; a claim needs three seeds.")
        elif seeds and seeds[0] < FEW_SEEDS:
            sentences.append(f"A claim needs {FEW_SEEDS} seeds.")
        return " ".join(sentences)

    def estimate_notes(self) -> list[str]:
        """What the estimates of the table's rows have to say, for instance why one is not defined."""
        notes: dict[str, None] = {}
        for column in self.columns:
            for metric in self.rows:
                estimate = column.estimate(metric)
                if isinstance(estimate, Estimate) and estimate.note:
                    notes[f"{column.name}: {estimate.note}."] = None
        return list(notes)


@dataclass(frozen=True)
class Comparison:
    """Blocks of one table, and the cells that are not in it.

    Attributes:
        blocks: in the order of the cells.
        differences: how many differences the table shows; each is corrected for all of them.
        problems: a line per cell that failed or has no predictions yet.
        resamples: bootstrap resamples.
    """

    blocks: Sequence[Block]
    differences: int
    problems: Sequence[str]
    resamples: int

    def legend(self) -> str:
        """How to read the table."""
        return (
            f"Brackets: 95 % bootstrap intervals over users ({self.resamples:,} resamples), and over seeds where there "
            "are several. Differences are paired by user, relative to what stands behind 'vs' (%) or, for "
            "recovery, in percentage points (pp). n.s.: the interval contains zero; *: it does not, and the difference "
            f"holds at 5 % after Holm's correction for the {_plural(self.differences, 'difference')} of this "
            "table; (*): only without the correction. Floors: shuffled, predictions paired with other users; constant, "
            "one training narrative for everyone."
        )

    def to_markdown(self) -> str:
        """A Markdown document with a heading, a table and a caption per block."""
        parts = [_markdown_block(block) for block in self.blocks]
        if self.problems:
            parts.append(
                "\n".join(["Not in the table:", "", *(f"- {_one_line(problem)}" for problem in self.problems)])
            )
        return "\n\n".join([*parts, self.legend()]) + "\n"

    def to_csv(self) -> str:
        """One line per block, metric and column; the recovery of each single label is in here only."""
        names = list(dict.fromkeys(name for block in self.blocks for name in block.settings))
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        measured = [
            "metric",
            "column",
            "kind",
            "unit",
            "value",
            "low",
            "high",
            "p",
            "p_holm",
            "users",
            "seeds",
            "status",
            "note",
        ]
        writer.writerow(["feature", *names, *measured])
        for block in self.blocks:
            place = [block.feature, *(block.settings.get(name, "") for name in names)]
            writer.writerows([*place, *record] for record in _records(block))
        return stream.getvalue()

    def to_terminal(self, width: int = _TERMINAL_WIDTH) -> str:
        """Plain text with intervals under their values; columns that do not fit go into further panels.

        How far a model is above the shuffled floor stands in the files alone, so that three encoders fit one panel.
        """
        parts = [_terminal_block(block, width) for block in self.blocks]
        if self.problems:
            parts.append("\n".join(["Not in the table:", *(f"  {_one_line(problem)}" for problem in self.problems)]))
        return "\n\n".join([*parts, fill(self.legend(), width)])

    def write(self, folder: Path) -> None:
        """Writes `table.md` and `table.csv` into a folder, each of them whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("table.md", self.to_markdown()), ("table.csv", self.to_csv())):
            write_atomically(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))


def cell_texts(metric: Metric, column: Column) -> tuple[str, str]:
    """Value and interval of one place in a table, the second empty where there is none."""
    estimate = column.estimate(metric)
    if isinstance(estimate, str):
        return estimate if column.kind == "encoder" else _ABSENT, ""
    if math.isnan(estimate.value):
        return _ABSENT, ""
    if column.kind != "difference":
        number = f".{metric.decimals}f"
        return f"{estimate.value:{number}}", _interval(estimate, number)
    unit = "pp" if metric.is_share else "%"
    mark = "n.s." if not estimate.excludes_zero else "*" if estimate.p_holm < LEVEL else "(*)"
    return f"{estimate.value:+.1f} {unit} {mark}", _interval(estimate, "+.1f")


def _interval(estimate: Estimate, number: str) -> str:
    if math.isnan(estimate.low):
        return f"[{_ABSENT}]"
    return f"[{estimate.low:{number}}, {estimate.high:{number}}]"


def _markdown_block(block: Block) -> str:
    lines = [f"### {_one_line(block.title)}", ""]
    lines.append("| Metric | " + " | ".join(_one_line(column.name) for column in block.columns) + " |")
    lines.append("|---" * (len(block.columns) + 1) + "|")
    for metric in block.rows:
        cells = (" ".join(filter(None, cell_texts(metric, column))) for column in block.columns)
        lines.append(f"| {metric.display} | " + " | ".join(cells) + " |")
    if costs := block.costs():
        head, *rows = (f"| {' | '.join(_one_line(text) for text in row)} |" for row in costs)
        lines += ["", head, "|---" * len(costs[0]) + "|", *rows]
    return "\n".join([*lines, "", " ".join([block.caption(), *block.estimate_notes()])])


def _terminal_block(block: Block, width: int) -> str:
    labels = ["", *(text for metric in block.rows for text in (metric.display, ""))]
    shown = [column for column in block.columns if not column.name.endswith(f" vs {SHUFFLED}")]
    columns = [[column.name.removeprefix("both ")] for column in shown]
    for metric in block.rows:
        for texts, column in zip(columns, shown, strict=True):
            value, interval = cell_texts(metric, column)
            texts += value, interval.replace(", ", ",")
    panels = [_panel(labels, panel) for panel in _panels(columns, width - _width(labels))]
    if costs := block.costs():
        names, *each = ([*texts] for texts in zip(*costs, strict=True))
        panels += [_panel(names, panel) for panel in _panels(each, width - _width(names))]
    return "\n\n".join([block.title, *panels, fill(" ".join([block.caption(), *block.estimate_notes()]), width)])


def _panels(columns: Sequence[Sequence[str]], width: int) -> Iterator[list[Sequence[str]]]:
    """Groups columns so that each group fits the width, two spaces between columns; one alone may be wider."""
    panel: list[Sequence[str]] = []
    for column in columns:
        if panel and sum(_width(other) + 2 for other in [*panel, column]) > width:
            yield panel
            panel = []
        panel.append(column)
    yield panel


def _panel(labels: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    lines = []
    for label, *texts in zip_longest(labels, *columns, fillvalue=""):
        if label or any(texts):
            padded = (f"{text:>{_width(column) + 2}}" for text, column in zip(texts, columns, strict=True))
            lines.append((f"{label:<{_width(labels)}}" + "".join(padded)).rstrip())
    return "\n".join(lines)


def _width(texts: Sequence[str]) -> int:
    return max(map(len, texts))


def _records(block: Block) -> Iterator[list[object]]:
    for metric in block.metrics.values():
        for column in block.columns:
            unit = "" if column.kind != "difference" else "pp" if metric.is_share else "%"
            estimate = column.estimate(metric)
            place: list[object] = [metric.name, column.name, column.kind, unit]
            if isinstance(estimate, str):
                yield [*place, "", "", "", "", "", "", column.seeds, estimate, ""]
                continue
            measured = (estimate.value, estimate.low, estimate.high, estimate.p, estimate.p_holm)
            numbers = ["" if math.isnan(n) else n for n in measured]
            status = "undefined" if math.isnan(estimate.value) else "ok"
            yield [*place, *numbers, estimate.users, column.seeds, status, estimate.note or ""]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
