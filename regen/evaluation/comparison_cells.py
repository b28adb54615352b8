"""The runs that a comparison is made of: reading them, and grouping them into blocks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from regen.data.tables import NEXT_ITEM
from regen.evaluation.comparison_blocks import Status
from regen.evaluation.scoring import EXAMPLES, with_own_columns
from regen.runtime.costs import TRAINED, read_costs

MOST_EMPTY = 0.05  # share of empty texts above which a table warns
ENCODER = "encoder"  # the setting whose values are columns where nothing else is asked for
Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        folder: the run folder; `examples.parquet` is in it once the run is scored.
        encoder: what entered the adapter.
        seed: the run's seed.
        settings: other things that may differ between runs, for instance adapter, vertical and `feature`
            (comma-separated when the run was trained on several).
        error: what made the cell fail; None for a cell that did not.
        parts: what the encoder is made of, for instance cf and content.
    """

    folder: Path
    encoder: str
    seed: int
    settings: dict[str, str]
    error: str | None = None
    parts: tuple[str, ...] = ()

    def value(self, key: str) -> str:
        """The value of a setting, the encoder among them."""
        return self.encoder if key == ENCODER else self.settings.get(key, "not set")

    @property
    def features(self) -> list[str]:
        """The features that the settings name."""
        return [name.strip(" '\"") for name in self.settings.get("feature", "").strip("[]").split(",") if name.strip()]

    @property
    def recommends(self) -> bool:
        """Whether items are ranked."""
        return NEXT_ITEM in self.features

    def identity(self, varying: Sequence[str]) -> str:
        """What tells this cell from the others, "purchase_reason, adapter=mlp, encoder=cf, seed=0"."""
        settings = [f"{name}={self.settings[name]}" for name in varying if name in self.settings]
        return ", ".join([*self.features, *settings, f"encoder={self.encoder}", f"seed={self.seed}"])


@dataclass(frozen=True)
class Run:
    """A cell and its examples, or the error for which it has none; with neither it has not been scored yet."""

    cell: Cell
    examples: pl.DataFrame | None
    error: str | None

    @property
    def costs(self) -> dict[str, float]:
        """What training and generating cost, where the run's records say so."""
        return read_costs(self.cell.folder)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What training wrote down; empty for what was not trained here."""
        path = self.cell.folder / TRAINED
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    @property
    def split(self) -> str:
        """The split, in words; empty where no record says."""
        return str(self.record.get("split", ""))

    @property
    def status(self) -> Status:
        """How a table shows a run without examples."""
        return "missing" if self.error is None else "failed"

    @property
    def features(self) -> list[str]:
        """The features of the examples, else those that the cell's settings name."""
        if self.examples is None:
            return self.cell.features
        return [str(name) for name in self.examples["feature"].unique(maintain_order=True)]

    def faults(self, feature: str, column: str) -> list[str]:
        """What makes its scores no fair picture of the column that it is part of, though it finished."""
        found = []
        rows = self.frame(feature, "model")
        empty = empty_share(rows)
        if empty > MOST_EMPTY:
            found.append(f"wrote {empty:.0%} empty texts" if empty < 1 else "wrote only empty texts")
        if limits := self.record.get("limits"):
            found.append(f"is no whole run ({', '.join(limits)})")
        loss = self.record.get("val_loss")
        if loss is not None and not math.isfinite(loss):
            found.append(f"has a validation loss that is not finite ({loss})")
        return [f"{column}: seed {self.cell.seed} {fault}" for fault in found]

    def frame(self, feature: str, system: str) -> pl.DataFrame:
        """The examples of one feature and system; no rows when there are none."""
        assert self.examples is not None
        return with_own_columns(self.examples.filter(pl.col("feature") == feature, pl.col("system") == system))


def empty_share(examples: pl.DataFrame) -> float:
    """Share of the texts that are empty; 0 without any text."""
    return float(examples["empty"].sum()) / max(1, len(examples)) if "empty" in examples.columns else 0.0


def load(cell: Cell) -> Run:
    """Reads a cell's examples. An unreadable file fails this cell alone, because the others must reach the table."""
    path = cell.folder / EXAMPLES
    if cell.error is not None or not path.exists():
        return Run(cell, None, cell.error)
    try:
        examples = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        return Run(cell, None, f"{path} cannot be read ({error}); evaluate the run again.")
    absent = [name for name in ("system", "user_id", "feature", "examples") if name not in examples.columns]
    if absent:
        return Run(cell, None, f"{path} has no column {absent[0]!r}; evaluate the run again.")
    for _, of_feature in examples.group_by("feature", maintain_order=True):
        if bad := _not_finite(with_own_columns(of_feature)):
            return Run(cell, None, f"{path} has NaN, infinity or nothing in {bad}; evaluate the run again.")
    if examples.filter(pl.col("system") == "model").is_empty():
        return Run(cell, None, f"{path} has 0 rows of the system 'model'; evaluate the run again.")
    return Run(cell, examples, None)


def _not_finite(examples: pl.DataFrame) -> str:
    """The first statistic that is not a number somewhere, and for whom; empty where all are."""
    for name, kind in examples.schema.items():
        if kind.is_float() and not (usable := examples[name].is_finite().fill_null(False)).all():
            rows = examples.filter(~usable)
            return f"{name!r} for {rows.height:,} of {examples.height:,} rows, the first of user {rows['user_id'][0]!r}"
    return ""


def varying_settings(cells: Sequence[Cell]) -> list[str]:
    """Settings, the encoder first, that are not the same in all cells; without the feature."""
    names = dict.fromkeys([ENCODER, *(name for cell in cells for name in cell.settings if name != "feature")])
    return [name for name in names if len({cell.value(name) for cell in cells}) > 1]


def grouped(runs: Sequence[Run], varying: Sequence[str]) -> dict[tuple[str, Settings], list[Run]]:
    """Runs by feature and varying settings; a run whose feature is not known is in the block of every feature.

    What a run was trained on counts as a setting when it is more than the block's feature.
    """
    known = list(dict.fromkeys(feature for run in runs for feature in run.features)) or ["narrative"]
    groups: dict[tuple[str, Settings], list[Run]] = {}
    for run in runs:
        for feature in run.features or known:
            settings = [(name, run.cell.value(name)) for name in varying]
            if len(run.cell.features) > 1:
                settings.append(("trained on", "+".join(run.cell.features)))
            groups.setdefault((feature, tuple(settings)), []).append(run)
    return groups


def by_seed(runs: Sequence[Run]) -> dict[int, Run]:
    """One run per seed in the order of seeds; a scored one comes before one that failed, one folder counts once.

    Raises:
        ValueError: when two scored runs have the same seed, because pooling them would count one seed twice.
    """
    chosen: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.cell.seed):
        other = chosen.get(run.cell.seed)
        if other is None or other.examples is None:
            chosen[run.cell.seed] = run
        elif run.examples is not None and run.cell.folder != other.cell.folder:
            raise ValueError(
                f"{other.cell.folder} and {run.cell.folder} are both encoder={run.cell.encoder} "
                f"seed={run.cell.seed} with the same settings. Compare one of them, or give the setting that differs."
            )
    return chosen
