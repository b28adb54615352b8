"""The comparison as Markdown, CSV and terminal text, in the layout of the paper's Table 1 with intervals and floors."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from textwrap import fill

from regen.evaluation.comparison_blocks import CLOSED_FORM, SHUFFLED, Block, Column, cell_texts, plural, verdict
from regen.evaluation.reading import reading
from regen.evaluation.statistics import MARGIN
from regen.evaluation.text_metrics import Metric
from regen.storage.artefacts import write_atomically

WIDTH = 120  # of the terminal text
MOST_COLUMNS = 12  # with more models than this, each model is a row
MOST_READINGS = 4  # blocks whose reading is printed


@dataclass(frozen=True)
class Comparison:
    """The blocks of one table, and the cells that are missing from it.

    Attributes:
        blocks: in the order of the cells.
        differences: number of differences in the table; p-values are corrected for all of them.
        problems: one line per cell that failed or has no predictions yet.
        resamples: bootstrap resamples.
        key: the setting whose values are the columns.
    """

    blocks: Sequence[Block]
    differences: int
    problems: Sequence[str]
    resamples: int
    key: str

    def legend(self) -> str:
        """Explains how to read the table."""
        columns = [column for block in self.blocks for column in block.columns]
        texts = [
            f"Brackets: 95 % bootstrap intervals over users ({self.resamples:,} resamples) and, with three or more "
            "seeds, over seeds. Differences are paired by user and seed. They are relative to the baseline after 'vs' "
            "(%) or, for shares, in percentage points (pp). n.s.: the interval contains zero. *: it does not, and the "
            f"difference holds at 5 % after Holm's correction for the {plural(self.differences, 'difference')} of this "
            "table; (*): only without the correction. Differences between trainings have no stars below three seeds."
        ]
        if any(column.beside for column in columns):
            texts.append(
                "The better one: the single encoder with the better mean, per metric. It is picked on the same data, "
                "which favours it, so the column is conservative for both. The column repeats a difference of this "
                "table and is no further test."
            )
        if any(column.verdicts for column in columns):
            texts.append(
                f"Verdicts on planted signals, with a margin of {MARGIN:g} pp: not worse, the whole interval lies "
                f"above -{MARGIN:g} pp; worse, it lies below; open, neither."
            )
        if any(metric.chance for block in self.blocks for metric in block.rows):
            texts.append(
                "Identification@k: how often a text is nearer, by sentence embedding, to its own user's reference than "
                "to those of k - 1 other users, averaged over all sets of k. MRR: mean reciprocal rank among all "
                "users. A text that is the same for everyone is at chance, however typical it is, so identification "
                "is the headline if there are no planted labels. Ungrounded names and numbers: texts with a name, "
                "brand or number that occurs nowhere in the user's history; lower is better."
            )
        if CLOSED_FORM in {column.name for column in columns}:
            texts.append(
                "Closed form: the start of the training of the joint encoder, or of the first one, without the LM. "
                "Other recommenders are fitted on the same training users and tuned on the same validation users: "
                "popularity; item kNN (by recency) and ALS (fold-in) of implicit; content kNN, the items whose texts "
                "are nearest to the history. Perfect readers, in a synthetic world: the best possible score with "
                "knowledge of the need (CF), of what the critique names, or of both. Bought items are candidates only "
                "with task.exclude_bought=false."
            )
        else:
            texts.append(
                "Floors: shuffled, predictions paired with other users; constant, one training narrative for everyone."
            )
        return " ".join(texts)

    def to_markdown(self) -> str:
        """The table as Markdown, with a heading, a table and a caption per block."""
        parts = [_markdown_block(block) for block in self.blocks]
        for title, rows in self.overviews():
            parts.insert(0, "\n".join([f"### {_one_line(title)}", "", *markdown_table(rows)]))
        if self.problems:
            parts.append(
                "\n".join(["Not in the table:", "", *(f"- {_one_line(problem)}" for problem in self.problems)])
            )
        return "\n\n".join([*parts, self.legend()]) + "\n"

    def overviews(self) -> list[tuple[str, list[list[str]]]]:
        """For each feature whose blocks differ in one setting: a title, and a table of the headline metric by block."""
        found = []
        for feature in dict.fromkeys(block.feature for block in self.blocks):
            blocks = [block for block in self.blocks if block.feature == feature and len(block.settings) == 1]
            metric = next((block.headline for block in blocks if block.headline is not None), None)
            if len(blocks) < 2 or metric is None:
                continue
            (setting,) = blocks[0].settings
            names = list(dict.fromkeys(c.name for block in blocks for c in block.columns if c.kind == "model"))
            rows = [[f"{setting} \\ {self.key}", *names]]
            for block in blocks:
                columns = {column.name: column for column in block.columns}
                texts = [" ".join(cell_texts(metric, columns[name])[:2]) if name in columns else "" for name in names]
                rows.append([block.settings[setting], *texts])
            found.append((f"{metric.display} of {feature} by {setting} and {self.key}", rows))
        return found

    def to_csv(self) -> str:
        """The table as CSV, one line per block, metric and column; only here with metrics outside `METRICS`."""
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
            "beside",
            "verdict",
        ]
        writer.writerow(["feature", *names, *measured])
        for block in self.blocks:
            place = [block.feature, *(block.settings.get(name, "") for name in names)]
            writer.writerows([*place, *record] for record in _records(block))
        return stream.getvalue()

    def to_terminal(self, *, every: bool = False) -> str:
        """Plain text with intervals below their values; columns that do not fit go into further panels.

        It ends with sentences that say what the table shows. Without `every` it has the leading metrics only.

        To fit three encoders into one panel, it omits the difference from the shuffled floor and, if the column of the
        better encoder exists, the differences from the single encoders. The files have them.
        """
        parts = [_terminal_block(block, every=every) for block in self.blocks]
        for title, rows in self.overviews():
            parts.insert(0, "\n\n".join([title, *_terminal_panels(rows)]))
        if self.problems:
            parts.append("\n".join(["Not in the table:", *(f"  {_one_line(problem)}" for problem in self.problems)]))
        parts.append(fill(self.legend(), WIDTH))
        for block in self.blocks if len(self.blocks) <= MOST_READINGS else ():
            if said := reading(block):
                parts.append("\n".join([f"What {block.title} shows:", *(fill(text, WIDTH) for text in said)]))
        return "\n\n".join(parts)

    def write(self, folder: Path) -> None:
        """Writes `table.md` and `table.csv` atomically into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("table.md", self.to_markdown()), ("table.csv", self.to_csv())):
            write_atomically(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))


def _values_as_rows(block: Block) -> list[list[str]]:
    """A table for many models: one row per model or floor, one column per metric, no differences."""
    shown = [column for column in block.columns if column.kind != "difference"]
    rows = [[column.label, *(" ".join(cell_texts(metric, column)[:2]) for metric in block.rows)] for column in shown]
    return [["", *(metric.display for metric in block.rows)], *rows]


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is its head."""
    head, *below = (f"| {' | '.join(map(_one_line, row))} |" for row in rows)
    return [head, "|---" * len(rows[0]) + "|", *below]


def _markdown_block(block: Block) -> str:
    lines = [f"### {_one_line(block.title)}", ""]
    if len(block.models) > MOST_COLUMNS:
        lines += markdown_table(_values_as_rows(block))
    else:
        heads = [f"{column.label} ({column.caveat})" if column.caveat else column.label for column in block.columns]
        lines += [" ".join(reading(block)), "", *_metric_rows(block, heads, block.leading_rows)]
        if folded := block.folded_rows:
            more = _metric_rows(block, heads, folded)
            lines += ["", f"<details><summary>{_named(folded)}</summary>", "", *more, "", "</details>"]
        if costs := block.costs():
            lines += ["", *markdown_table(costs)]
    return "\n".join([*lines, "", " ".join([block.caption(), *block.estimate_notes(block.rows)])])


def _metric_rows(block: Block, heads: Sequence[str], metrics: Sequence[Metric]) -> list[str]:
    rows = [
        [metric.display, *(" ".join(filter(None, cell_texts(metric, column))) for column in block.columns)]
        for metric in metrics
    ]
    return markdown_table([["Metric", *heads], *rows])


def _named(metrics: Sequence[Metric]) -> str:
    return ", ".join(metric.display for metric in metrics)


def _terminal_block(block: Block, *, every: bool) -> str:
    if len(block.models) > MOST_COLUMNS:
        return "\n\n".join([block.title, *_terminal_panels(_values_as_rows(block)), fill(block.caption(), WIDTH)])
    metrics = block.rows if every else block.leading_rows
    labels = ["", "", *(text for metric in metrics for text in (metric.display, "", ""))]
    selects = any(column.beside for column in block.columns)
    shown = [
        column
        for column in block.columns
        if not column.name.endswith(f" vs {SHUFFLED}")
        and (column.kind != "difference" or bool(column.beside) or not selects)
    ]
    columns = [[column.label.removeprefix("both "), column.caveat] for column in shown]
    for metric in metrics:
        for texts, column in zip(columns, shown, strict=True):
            value, interval, remark = cell_texts(metric, column)
            texts += value, interval.replace(", ", ","), remark
    panels = [_panel(labels, panel) for panel in _panels(labels, columns)]
    if costs := block.costs():
        panels += _terminal_panels(costs)
    if not every and (folded := block.folded_rows):
        panels.append(fill(f"Not shown here: {_named(folded)}.", WIDTH))
    return "\n\n".join([block.title, *panels, fill(" ".join([block.caption(), *block.estimate_notes(metrics)]), WIDTH)])


def _terminal_panels(rows: Sequence[Sequence[str]]) -> list[str]:
    """Panels of a table; each repeats the first column."""
    names, *each = ([*texts] for texts in zip(*rows, strict=True))
    return [_panel(names, panel) for panel in _panels(names, each)]


def _panels(labels: Sequence[str], columns: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Groups columns to fit beside the labels with two spaces between them; a single column may be wider."""
    panel: list[Sequence[str]] = []
    for column in columns:
        if panel and sum(_width(other) + 2 for other in [*panel, column]) > WIDTH - _width(labels):
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
                yield [*place, "", "", "", "", "", "", column.seeds, estimate, *_remarks("", metric, column)]
                continue
            measured = (estimate.value, estimate.low, estimate.high, estimate.p, estimate.p_holm)
            numbers = ["" if math.isnan(n) else n for n in measured]
            status = "undefined" if math.isnan(estimate.value) else "ok"
            yield [*place, *numbers, estimate.users, column.seeds, status, *_remarks(estimate.note, metric, column)]


def _remarks(note: str | None, metric: Metric, column: Column) -> tuple[str, str, str]:
    """The last fields of a CSV line: notes and faults, the baseline of a difference, and the verdict."""
    notes = "; ".join(filter(None, [note, *column.faults]))
    return notes, column.beside.get(metric.name, ""), verdict(metric, column)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
