"""Where runs differ: the headline metric and its differences by history length and by popularity of the items."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from regen.data.splits import fitted_interactions
from regen.evaluation.comparison import Columns, compare_runs
from regen.evaluation.comparison_blocks import Block, cell_texts
from regen.evaluation.comparison_cells import Cell, Run, load
from regen.evaluation.comparison_table import markdown_table
from regen.evaluation.run_data import read_run_data
from regen.evaluation.slices import ATTRIBUTES, example_attributes, in_buckets
from regen.evaluation.text_metrics import KEYS

_NUMERIC = [name for name in ATTRIBUTES if name != "items_seen"]
_READ = (
    "Each bucket has about a quarter of the test narratives; equal values stay together. Purchases are those of "
    "training users. Brackets, stars and *the better one* are as in the table of the runs. Holm's correction is over "
    "the differences of one kind of bucket. Floors vary between buckets: read the difference from the shuffled floor "
    "too."
)
_QUICK = 100  # resamples where only the choice of the headline metric is needed


@dataclass(frozen=True)
class Section:
    """The buckets of one attribute for one feature and combination of settings.

    Attributes:
        title: Feature, settings and attribute.
        blocks: One per bucket, by its label.
    """

    title: str
    blocks: dict[str, Block]

    def to_markdown(self) -> str:
        """One row per bucket, one column per model, difference and floor."""
        metric = next((block.headline for block in self.blocks.values() if block.headline is not None), None)
        if metric is None:
            return f"## {self.title}\n\nNo metric is defined."
        names = list(dict.fromkeys(column.label for block in self.blocks.values() for column in block.columns))
        rows = [["Bucket", "Users", *names]]
        for label, block in self.blocks.items():
            columns = {column.label: column for column in block.columns}
            texts = [" ".join(filter(None, cell_texts(metric, columns[n]))) if n in columns else "" for n in names]
            rows.append([label, f"{block.users:,}", *texts])
        return "\n".join([f"## {self.title}", "", f"{metric.display}.", "", *markdown_table(rows)])


def slices_of(cells: Sequence[Cell], *, columns: Columns, resamples: int = 2000, seed: int = 0) -> list[Section]:
    """Compares runs within buckets of their test narratives; arguments as for `compare`.

    Raises:
        ValueError: If no run is scored, or the data of one are not on this machine.
    """
    runs = [run for run in map(load, cells) if run.examples is not None]
    if not runs:
        raise ValueError("diagnose=true: none of these runs is scored yet.")
    headlines = {
        (block.feature, tuple(block.settings.items())): block.headline
        for block in compare_runs(runs, columns=columns, resamples=_QUICK, seed=seed).blocks
    }
    needed = {name for metric in headlines.values() if metric is not None for name in metric.columns}
    known: dict[tuple[object, ...], pl.DataFrame] = {}
    attributes = [_attributes(run, known) for run in runs]
    sections: dict[str, dict[str, Block]] = {}
    for name in _NUMERIC:
        parts: list[Run] = []
        for run, of_run in zip(runs, attributes, strict=True):
            assert run.examples is not None
            kept = run.examples.select("system", *KEYS, pl.col("examples", *needed & {*run.examples.columns}))
            for _, rows in kept.group_by("feature", maintain_order=True):
                for label, part in in_buckets(rows, of_run, name).items():
                    settings = {**run.cell.settings, "bucket": label, "feature": str(rows["feature"][0])}
                    parts.append(Run(replace(run.cell, settings=settings), part, None))
        for block in compare_runs(parts, columns=columns, resamples=resamples, seed=seed).blocks:
            settings = {key: value for key, value in block.settings.items() if key != "bucket"}
            title = f"{replace(block, settings=settings).title}: {ATTRIBUTES[name].lower()}"
            sections.setdefault(title, {})[block.settings.get("bucket", "all")] = block
    return [Section(title, blocks) for title, blocks in sections.items()]


def write_slices(sections: Sequence[Section], folder: Path) -> Path:
    """Writes `slices.md` into a folder and returns its path."""
    path = folder / "slices.md"
    text = "\n\n".join(["# Where do the runs differ?", _READ, *(section.to_markdown() for section in sections)])
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _attributes(run: Run, known: dict[tuple[object, ...], pl.DataFrame]) -> pl.DataFrame:
    """The attributes of a run's test narratives; runs on the same data share them."""
    folder = run.cell.folder
    inputs = run.record.get("inputs", {}).get("prepared")
    at = (inputs, run.cell.settings.get("data.max_history"), run.cell.settings.get("feature"), run.record.get("split"))
    if at not in known:
        data = read_run_data(folder)
        if data is None:
            raise ValueError(f"diagnose=true: {folder} does not narrate, or its prepared data are not on this machine.")
        trained = fitted_interactions(data.tables, data.config.split)
        known[at] = example_attributes(data.tests, data.tables.interactions, trained)
    return known[at]
