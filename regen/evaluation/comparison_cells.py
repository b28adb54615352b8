"""The runs of a comparison: reads them and groups them into blocks."""

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
ENCODER = "encoder"  # the setting whose values are the columns by default
Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        folder: the run folder; it contains `examples.parquet` once the run is scored.
        encoder: name of the encoder.
        seed: the run's seed.
        settings: other settings that differ between runs, for instance adapter and vertical, and always `feature`
            (comma-separated if the run was trained on several).
        error: the error of a failed cell, else None.
        parts: the parts of the encoder, for instance cf and content.
        note: what the caption says about another system's file; empty for a run.
    """

    folder: Path
    encoder: str
    seed: int
    settings: dict[str, str]
    error: str | None = None
    parts: tuple[str, ...] = ()
    note: str = ""

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
        """Names this cell among others, for instance "purchase_reason, adapter=mlp, encoder=cf, seed=0"."""
        settings = [f"{name}={self.settings[name]}" for name in varying if name in self.settings]
        return ", ".join([*self.features, *settings, f"encoder={self.encoder}", f"seed={self.seed}"])


@dataclass(frozen=True)
class Run:
    """A cell with its examples or its error; it has neither if it is not scored yet."""

    cell: Cell
    examples: pl.DataFrame | None
    error: str | None

    @property
    def costs(self) -> dict[str, float]:
        """The recorded costs of training and generation."""
        return read_costs(self.cell.folder)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The record of training; empty if it was not trained here."""
        return read_record(self.cell.folder)

    @property
    def status(self) -> Status:
        """The status of a run without examples."""
        return "missing" if self.error is None else "failed"

    @property
    def features(self) -> list[str]:
        """The features of the examples, or of the cell's settings without examples."""
        if self.examples is None:
            return self.cell.features
        return [str(name) for name in self.examples["feature"].unique(maintain_order=True)]

    def faults(self, feature: str, column: str) -> list[str]:
        """Reasons not to trust the scores of a finished run, prefixed by its column and seed."""
        found = []
        empty = empty_share(self.frame(feature, "model"))
        if empty > MOST_EMPTY:
            found.append(f"wrote {empty:.0%} empty texts" if empty < 1 else "wrote only empty texts")
        if limits := self.record.get("limits"):
            found.append(f"is no whole run ({', '.join(limits)})")
        loss = self.record.get("val_loss")
        if loss is not None and not math.isfinite(loss):
            found.append(f"has a validation loss that is not finite ({loss})")
        return [f"{column}: seed {self.cell.seed} {fault}" for fault in found]

    def frame(self, feature: str, system: str) -> pl.DataFrame:
        """The examples of one feature and system; possibly no rows."""
        assert self.examples is not None
        return with_own_columns(self.examples.filter(pl.col("feature") == feature, pl.col("system") == system))


def read_record(folder: Path) -> dict[str, Any]:
    """The record of training in a run's folder; empty without one."""
    path = folder / TRAINED
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def empty_share(examples: pl.DataFrame) -> float:
    """The share of empty texts; 0 without any text."""
    return float(examples["empty"].sum()) / max(1, len(examples)) if "empty" in examples.columns else 0.0


def load(cell: Cell) -> Run:
    """Reads a cell's examples. An unreadable file fails only this cell, so that the others reach the table."""
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
    """The first statistic with missing or non-finite values, and the first such user; empty without any."""
    for name, kind in examples.schema.items():
        if kind.is_float() and not (usable := examples[name].is_finite().fill_null(False)).all():
            rows = examples.filter(~usable)
            return f"{name!r} for {rows.height:,} of {examples.height:,} rows, the first of user {rows['user_id'][0]!r}"
    return ""


def varying_settings(cells: Sequence[Cell]) -> list[str]:
    """The settings that differ between cells, the encoder first, without the feature."""
    names = dict.fromkeys([ENCODER, *(name for cell in cells for name in cell.settings if name != "feature")])
    return [name for name in names if len({cell.value(name) for cell in cells}) > 1]


def grouped(runs: Sequence[Run], varying: Sequence[str]) -> dict[tuple[str, Settings], list[Run]]:
    """Runs by feature and varying settings; a run with an unknown feature is in the block of every feature.

    The features of a run that was trained on several count as a setting.
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
    """One run per seed, in the order of seeds; a scored run replaces a failed one, and a folder counts once.

    Raises:
        ValueError: when two scored runs have the same seed, because pooling would count this seed twice.
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
