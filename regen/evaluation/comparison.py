"""One table over run folders: encoders, or whatever was swept, seeds pooled, paired differences, floors (Table 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from regen.evaluation.comparison_blocks import CLOSED_FORM, SHUFFLED, Block, Column
from regen.evaluation.comparison_cells import ENCODER, Cell, Run, by_seed, grouped, load, varying_settings
from regen.evaluation.comparison_table import Comparison
from regen.evaluation.scoring import EXAMPLES, REST
from regen.evaluation.statistics import Bootstrap, Estimate, ResampledSums, holm
from regen.evaluation.text_metrics import METRICS, Metric, metrics_for
from regen.runtime.costs import mean_costs

__all__ = ["ENCODERS", "Cell", "Columns", "Comparison", "compare", "compared_key"]

ENCODERS = ("cf", "content", "both", "text", "none", "random", "noise")
"""The order of columns; other encoders follow in alphabetical order."""

BETTER = "the better one"
_CONSTANT = "constant"
_FLOORS = (SHUFFLED, _CONSTANT)
_ROWS_WITHOUT_SCORES = ("similarity", "bleu", "rougeLsum")  # the paper's, for a block in which nothing finished


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are, and which of them are compared.

    Attributes:
        key: the setting whose values are the columns; None for the encoder, or where all cells have the same one for
            the first setting that varies.
        reference: the value with which the others are compared. None for the first one; of encoders, the one that
            joins the parts of others is then compared with these.
    """

    key: str | None = None
    reference: str | None = None


def compare(cells: Sequence[Cell], *, columns: Columns = Columns(), resamples: int = 2000, seed: int = 0) -> Comparison:
    """Compares the cells of a grid, a block per feature and per combination of the other settings that vary.

    Cells that failed, have no predictions yet or whose examples cannot be read are shown as such; the others are kept.

    Args:
        cells: runs of one grid or of several; those that differ by seed alone are pooled.
        columns: what stands side by side.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        ValueError: without a cell, when `columns` names what the cells do not have, or when two scored cells agree in
            everything, the seed too.
    """
    if not cells:
        raise ValueError("there is no run to compare: 0 cells. Give a folder that holds run folders.")
    key = compared_key(cells, columns.key)
    values = _in_order(key, list(dict.fromkeys(cell.value(key) for cell in cells)))
    contrast = _contrast(cells, key, values, columns.reference)
    varying = varying_settings(cells)
    beside = [name for name in varying if name != key]
    runs = [load(cell) for cell in cells]
    bootstraps = _Bootstraps(resamples=resamples, seed=seed)
    blocks = [
        _BlockBuilder(feature, members, bootstraps, key, values, contrast).build(dict(settings))
        for (feature, settings), members in grouped(runs, beside).items()
    ]
    problems = []
    for run in runs:
        if run.examples is None:
            reason = run.error or f"no {EXAMPLES} in {run.cell.folder} yet"
            problems.append(f"{run.cell.identity(varying)}: {run.status}: {reason}")
    return Comparison(*_corrected(blocks), problems, resamples, key)


def compared_key(cells: Sequence[Cell], key: str | None = None) -> str:
    """The setting whose values are the columns; see `Columns.key`.

    Raises:
        ValueError: If no cell has such a setting; it names those that vary.
    """
    varying = varying_settings(cells)
    if key is None:
        return ENCODER if ENCODER in varying or not varying else varying[0]
    if key not in varying and key != ENCODER:
        raise ValueError(f"columns={key}: all runs agree in it. They differ in {', '.join(varying) or 'nothing'}.")
    return key


def _in_order(key: str, values: list[str]) -> list[str]:
    """Encoders in the paper's order, numbers by size, other values as they came."""
    if key == ENCODER:
        return [name for name in ENCODERS if name in values] + sorted(set(values) - set(ENCODERS))
    try:
        return sorted(values, key=float)
    except ValueError:
        return values


@dataclass(frozen=True)
class _Contrast:
    """Which columns are compared.

    Attributes:
        pairs: each column that is compared, and with what.
        joint: the encoder whose difference from the better one of its parts is shown; None where there is none.
        source: the column whose floors are shown, if it was scored.
    """

    pairs: Sequence[tuple[str, str]]
    joint: str | None
    source: str


def _contrast(cells: Sequence[Cell], key: str, values: Sequence[str], reference: str | None) -> _Contrast:
    if reference is not None and reference not in values:
        raise ValueError(f"reference={reference} is none of the columns: {', '.join(values)}.")
    if key != ENCODER or reference is not None:
        first = reference or values[0]
        return _Contrast([(value, first) for value in values if value != first], None, first)
    parts = {cell.encoder: frozenset(cell.parts) for cell in cells}
    below = {name: [other for other in values if parts[other] and parts[other] < parts[name]] for name in values}
    joint = max(values, key=lambda name: (len(below[name]), len(parts[name])))
    if not below[joint]:
        return _Contrast([], None, values[0])
    whole = len(below[joint]) > 1 and frozenset.union(*(parts[name] for name in below[joint])) == parts[joint]
    return _Contrast([(joint, other) for other in below[joint]], joint if whole else None, joint)


def _corrected(blocks: Sequence[Block]) -> tuple[list[Block], int]:
    """The blocks with every difference corrected for all that the table shows, and how many these are.

    The better one's column holds the same estimates as the column of the encoder that is better, so they count once.
    """
    shown = {
        id(estimate): estimate
        for block in blocks
        for column in block.columns
        if column.kind == "difference"
        for metric in block.rows
        if isinstance(estimate := column.estimate(metric), Estimate) and not math.isnan(estimate.p)
    }
    adjusted = dict(zip(shown, holm([estimate.p for estimate in shown.values()]), strict=True))

    def corrected(column: Column) -> Column:
        if isinstance(column.content, str):
            return column
        estimates = {
            name: replace(estimate, p_holm=adjusted.get(id(estimate), math.nan))
            for name, estimate in column.content.items()
        }
        return replace(column, content=estimates)

    return [replace(block, columns=[corrected(column) for column in block.columns]) for block in blocks], len(shown)


class _Pool:
    """Examples of one system, a frame per seed, over the users that all its seeds have."""

    def __init__(self, frames: Sequence[pl.DataFrame], faults: Sequence[str]) -> None:
        self.frames, self.faults = frames, faults
        per_seed = [frozenset(frame["user_id"].cast(pl.String)) for frame in frames]
        self.users: frozenset[str] = frozenset.intersection(*per_seed)
        self.loses_users = any(users != self.users for users in per_seed)
        self._resampled: dict[Bootstrap, list[ResampledSums]] = {}

    def resampled(self, bootstrap: Bootstrap) -> list[ResampledSums]:
        """Sums per seed over the bootstrap's users, computed once."""
        if bootstrap not in self._resampled:
            kept = pl.col("user_id").cast(pl.String).is_in(bootstrap.users.to_list())
            self._resampled[bootstrap] = [bootstrap.resample(frame.filter(kept)) for frame in self.frames]
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


class _BlockBuilder:
    """Turns the runs of one feature and combination of settings into the columns of a block."""

    def __init__(
        self,
        feature: str,
        runs: Sequence[Run],
        bootstraps: _Bootstraps,
        key: str,
        values: Sequence[str],
        contrast: _Contrast,
    ) -> None:
        of_block = {run.cell.value(key) for run in runs}
        self.feature, self.bootstraps, self.contrast = feature, bootstraps, contrast
        self.names = [value for value in values if value in of_block]
        self.runs = {name: by_seed([run for run in runs if run.cell.value(key) == name]) for name in self.names}
        pools = {name: self._pool(name, "model") for name in self.names}
        self.pools = {name: pool for name, pool in pools.items() if pool is not None}
        columns = dict.fromkeys(c for pool in self.pools.values() for frame in pool.frames for c in frame.columns)
        self.metrics: Mapping[str, Metric] = metrics_for(list(columns))
        if not self.pools:
            self.metrics = {name: METRICS[name] for name in _ROWS_WITHOUT_SCORES}
        self.source = contrast.source if contrast.source in self.pools else next(iter(self.pools), None)
        self.floors = self._floors()
        self.notes: list[str] = []

    def build(self, settings: Mapping[str, str]) -> Block:
        """All columns: models, differences, floors."""
        columns = [self._model(name) for name in self.names]
        pairs = [pair for pair in self.contrast.pairs if set(pair) <= set(self.names)]
        beside = {pair: self._difference(*pair, self.pools.get(pair[1])) for pair in pairs}
        if self.contrast.joint is None or len(pairs) == 1:
            columns += [replace(column, verdicts=True) for column in beside.values()]
        else:
            columns += beside.values()
        if self.contrast.joint is not None and len(pairs) == len(self.contrast.pairs):
            by_name = {column.name: column for column in columns}
            columns.append(self._better(by_name, {other: column for (_, other), column in beside.items()}))
        for floor in (SHUFFLED, CLOSED_FORM):  # which a model that does not read its histories does not lead
            if self.source and floor in self.floors:
                columns.append(self._difference(self.source, floor, self.floors[floor]))
        columns += [
            Column(name, "floor", len(pool.frames), self._estimates([pool], pool.users), faults=pool.faults)
            for name, pool in self.floors.items()
        ]
        sizes = {name: len(pool.users) for name, pool in self.pools.items()}
        if len({pool.users for pool in self.pools.values()}) > 1:
            listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            self.notes.append(f"The models were scored on different users ({listed}).")
        users = min(sizes.values(), default=0)
        splits = sorted({split for of in self.runs.values() for run in of.values() if (split := run.split)})
        if splits:
            self.notes.append(f"Split: {'; '.join(splits)}.")
        return Block(self.feature, settings, self.metrics, columns, users, self.notes)

    def _pool(self, name: str, system: str) -> _Pool | None:
        """The seeds of a column that have rows of this system; None without any."""
        scored = [run for run in self.runs[name].values() if run.examples is not None]
        frames = [frame for run in scored if not (frame := run.frame(self.feature, system)).is_empty()]
        faults = [fault for run in scored for fault in run.faults(self.feature, name) if system != _CONSTANT]
        return _Pool(frames, faults) if frames else None

    def _model(self, name: str) -> Column:
        runs, pool = self.runs[name], self.pools.get(name)
        if pool is None:
            failed = any(run.status == "failed" for run in runs.values())
            return Column(name, "model", 0, "failed" if failed else "missing")
        for seed, run in runs.items():
            if run.examples is None:
                self.notes.append(f"{name}: seed {seed} is {run.status}; the others are pooled.")
        if pool.loses_users:
            self.notes.append(f"{name}: only the {len(pool.users):,} users that all its seeds have.")
        costs = mean_costs([run.costs for run in runs.values() if run.examples is not None])
        return Column(name, "model", len(pool.frames), self._estimates([pool], pool.users), costs, pool.faults)

    def _difference(self, subject: str, baseline: str, beside: _Pool | None) -> Column:
        name = f"{subject} vs {baseline}"
        if subject not in self.pools or beside is None:
            return Column(name, "difference", 0, "missing")
        pair = [self.pools[subject], beside]
        shared = pair[0].users & pair[1].users
        if pair[0].users != pair[1].users:
            counts = " and ".join(f"{len(pool.users):,}" for pool in pair)
            self.notes.append(f"{name}: only the {len(shared):,} users that both have, of {counts}.")
        seeds = min(len(pool.frames) for pool in pair)
        faults = list(dict.fromkeys(fault for pool in pair for fault in pool.faults))
        return Column(name, "difference", seeds, self._estimates(pair, shared), faults=faults)

    def _better(self, columns: Mapping[str, Column], beside: Mapping[str, Column]) -> Column:
        """The joint encoder's difference from that of its parts with the better mean, per metric.

        It is taken from that baseline's own column, with its pairing, so it is no further test. Of equal baselines it
        is the first. Metrics of which more is not better have no better one.
        """
        name = f"{self.contrast.joint} vs {BETTER}"
        if any(isinstance(column.content, str) for column in beside.values()):
            return Column(name, "difference", 0, "missing")
        chosen: dict[str, str] = {}
        for metric in self.metrics.values():
            values = {
                other: estimate.value
                for other in beside
                if isinstance(estimate := columns[other].estimate(metric), Estimate)
            }
            if metric.higher_is_better and not any(map(math.isnan, values.values())):
                chosen[metric.name] = max(values, key=values.__getitem__)
        estimates = {
            metric.name: estimate
            for metric in self.metrics.values()
            if metric.name in chosen and isinstance(estimate := beside[chosen[metric.name]].estimate(metric), Estimate)
        }
        nothing = {metric: Estimate.undefined(None) for metric in self.metrics if metric not in estimates}
        return Column(
            name,
            "difference",
            min(column.seeds for column in beside.values()),
            estimates | nothing,
            faults=list(dict.fromkeys(fault for column in beside.values() for fault in column.faults)),
            beside=chosen,
            verdicts=True,
        )

    def _floors(self) -> dict[str, _Pool]:
        """The floors of the source: the joint encoder, the reference, or else the first model that finished."""
        systems = [name for name in self._systems() if name not in ("model", REST)]
        pools = {name: self._pool(self.source, name) for name in systems} if self.source else {}
        for model in self.names:  # another system's file has floors of its own, on the rows that allow them
            if self._pool(model, REST) is not None:
                pools |= {f"{model} {name}": self._pool(model, name) for name in _FLOORS}
        return {name: pool for name, pool in pools.items() if pool is not None}

    def _systems(self) -> list[str]:
        """What the runs of the source hold scores of, in their order."""
        runs = self.runs[self.source].values() if self.source else ()
        scored = [run.examples for run in runs if run.examples is not None]
        return list(dict.fromkeys(name for of in scored for name in of["system"].unique(maintain_order=True)))

    def _estimates(self, pools: Sequence[_Pool], users: frozenset[str]) -> dict[str, Estimate]:
        """Every metric that all runs have: of one pool its value, of two their paired difference."""
        if not users:
            return {name: Estimate.undefined("no user in common") for name in self.metrics}
        bootstrap = self.bootstraps.of(users)
        runs = [pool.resampled(bootstrap) for pool in pools]
        estimates = {}
        for name, metric in self.metrics.items():
            if not all(set(metric.columns) <= set(run.columns) for of in runs for run in of):
                continue
            if len(runs) == 1:
                estimates[name] = bootstrap.interval(metric, runs[0])
            else:
                estimates[name] = bootstrap.difference(metric, *runs, relative=not metric.is_share)
        return estimates
