"""One table over run folders: encoders side by side, seeds pooled, paired differences, floors (paper Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from regen.evaluation.comparison_table import Block, Column, Comparison, Status
from regen.evaluation.scoring import EXAMPLES
from regen.evaluation.statistics import Bootstrap, Estimate, ResampledSums
from regen.evaluation.text_metrics import METRICS, Metric, metrics_for

__all__ = ["ENCODERS", "Cell", "Comparison", "compare"]

ENCODERS = ("cf", "content", "both", "text", "none", "random", "noise")
"""The order of columns; other names follow in alphabetical order."""

_BASELINES = ("cf", "content")
_FLOORS = ("shuffled", "constant")
_ROWS_WITHOUT_SCORES = ("bleu", "rougeLsum", "similarity")  # the paper's, for a block in which nothing finished


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
    """

    folder: Path
    encoder: str
    seed: int
    settings: dict[str, str]
    error: str | None = None

    @property
    def features(self) -> list[str]:
        """The features that the settings name."""
        return [name.strip(" '\"") for name in self.settings.get("feature", "").strip("[]").split(",") if name.strip()]


@dataclass(frozen=True)
class _Run:
    """A cell and its examples, or the error for which it has none; with neither it has not been scored yet."""

    cell: Cell
    examples: pl.DataFrame | None
    error: str | None

    @property
    def status(self) -> Status:
        return "missing" if self.error is None else "failed"

    @property
    def features(self) -> list[str]:
        if self.examples is None:
            return self.cell.features
        return [str(name) for name in self.examples["feature"].unique(maintain_order=True)]


class _Pool:
    """Examples of one system, a frame per seed, over the users that all its seeds have."""

    def __init__(self, frames: Sequence[pl.DataFrame]) -> None:
        self.frames = frames
        per_seed = [frozenset(frame["user_id"]) for frame in frames]
        self.users = frozenset[str].intersection(*per_seed)
        self.loses_users = any(users != self.users for users in per_seed)
        self._resampled: dict[Bootstrap, list[ResampledSums]] = {}

    def resampled(self, bootstrap: Bootstrap) -> list[ResampledSums]:
        """Sums per seed over the bootstrap's users, computed once."""
        if bootstrap not in self._resampled:
            ours = [frame.filter(pl.col("user_id").is_in(bootstrap.users.implode())) for frame in self.frames]
            self._resampled[bootstrap] = [bootstrap.resample(frame) for frame in ours]
        return self._resampled[bootstrap]


class _Bootstraps:
    """One bootstrap per set of users, so that everything compared on the same users shares its draws."""

    def __init__(self, *, resamples: int, seed: int) -> None:
        self._of: dict[frozenset[str], Bootstrap] = {}
        self._resamples, self._seed = resamples, seed

    def of(self, users: frozenset[str]) -> Bootstrap:
        if users not in self._of:
            self._of[users] = Bootstrap(users, resamples=self._resamples, seed=self._seed)
        return self._of[users]


def compare(cells: Sequence[Cell], *, resamples: int = 2000, seed: int = 0) -> Comparison:
    """Compares the encoders of a grid, a block per feature and per combination of the other settings that vary.

    Cells that failed, have no predictions yet or whose examples cannot be read are shown as such; the others are kept.

    Args:
        cells: runs of one grid or of several.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        ValueError: without a cell, or when two scored cells agree in encoder, seed, feature and settings.
    """
    if not cells:
        raise ValueError("there is no run to compare: 0 cells. Give a folder that holds run folders.")
    varying = _varying(cells)
    runs = [_load(cell) for cell in cells]
    bootstraps = _Bootstraps(resamples=resamples, seed=seed)
    blocks = [
        _block(feature, dict(settings), members, bootstraps)
        for (feature, settings), members in _grouped(runs, varying).items()
    ]
    problems = []
    for run in runs:
        if run.examples is None:
            reason = run.error or f"no {EXAMPLES} in {run.cell.folder}"
            problems.append(f"{_identity(run.cell, varying)}: {run.status}: {reason}")
    return Comparison(blocks, problems, resamples)


def _varying(cells: Sequence[Cell]) -> list[str]:
    """Settings, besides the feature, that are not the same in all cells."""
    names = dict.fromkeys(name for cell in cells for name in cell.settings if name != "feature")
    return [name for name in names if len({cell.settings.get(name) for cell in cells}) > 1]


def _identity(cell: Cell, varying: Sequence[str]) -> str:
    settings = [f"{name}={cell.settings[name]}" for name in varying if name in cell.settings]
    return ", ".join([*cell.features, *settings, f"encoder={cell.encoder}", f"seed={cell.seed}"])


def _load(cell: Cell) -> _Run:
    """Reads a cell's examples. An unreadable file fails this cell alone, because the others must reach the table."""
    path = cell.folder / EXAMPLES
    if cell.error is not None or not path.exists():
        return _Run(cell, None, cell.error)
    try:
        examples = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        return _Run(cell, None, f"{path} cannot be read ({error}); evaluate the run again.")
    absent = [name for name in ("system", "user_id", "feature", "examples") if name not in examples.columns]
    if absent or examples.is_empty():
        reason = f"no column {absent[0]!r}" if absent else "0 rows"
        return _Run(cell, None, f"{path} has {reason}; evaluate the run again.")
    return _Run(cell, examples, None)


_Settings = tuple[tuple[str, str], ...]


def _grouped(runs: Sequence[_Run], varying: Sequence[str]) -> dict[tuple[str, _Settings], list[_Run]]:
    """Runs by feature and varying settings; a run whose feature is not known is in the block of every feature."""
    known = list(dict.fromkeys(feature for run in runs for feature in run.features)) or ["narrative"]
    groups: dict[tuple[str, _Settings], list[_Run]] = {}
    for run in runs:
        for feature in run.features or known:
            settings = [(name, run.cell.settings.get(name, "not set")) for name in varying]
            if len(run.cell.features) > 1:
                settings.append(("trained on", "+".join(run.cell.features)))
            groups.setdefault((feature, tuple(settings)), []).append(run)
    return groups


def _block(feature: str, settings: dict[str, str], runs: Sequence[_Run], bootstraps: _Bootstraps) -> Block:
    """Columns, users and notes of one block."""
    names = {run.cell.encoder for run in runs}
    encoders = [name for name in ENCODERS if name in names] + sorted(names - set(ENCODERS))
    by_encoder = {name: _by_seed(feature, [run for run in runs if run.cell.encoder == name]) for name in encoders}
    scored = {name: [run for run in of.values() if run.examples is not None] for name, of in by_encoder.items()}
    pools = {name: _Pool([_frame(run, feature, "model") for run in done]) for name, done in scored.items() if done}
    metrics = metrics_for(list(dict.fromkeys(c for pool in pools.values() for frame in pool.frames for c in frame.columns)))
    metrics = metrics or {name: METRICS[name] for name in _ROWS_WITHOUT_SCORES}

    notes, columns = [], []
    for name in encoders:
        if name in pools:
            columns.append(_column(name, "encoder", [pools[name]], metrics, bootstraps))
            notes += _pool_notes(name, pools[name], by_encoder[name])
        else:
            failed = any(run.status == "failed" for run in by_encoder[name].values())
            columns.append(Column(name, "encoder", 0, "failed" if failed else "missing"))
    for name in _BASELINES if "both" in names else ():
        if name not in names:
            continue
        pair = [pools[end] for end in ("both", name) if end in pools]
        if len(pair) < 2:
            columns.append(Column(f"both vs {name}", "difference", 0, "missing"))
            continue
        columns.append(_column(f"both vs {name}", "difference", pair, metrics, bootstraps))
        notes += _pair_notes(name, *pair)
    source = "both" if "both" in pools else next(iter(pools), None)
    if source is not None:
        floors, said = _floors(feature, source, scored[source], metrics, bootstraps)
        columns, notes = columns + floors, notes + said
    users = min((len(pool.users) for pool in pools.values()), default=0)
    return Block(feature, settings, metrics, columns, users, notes)
