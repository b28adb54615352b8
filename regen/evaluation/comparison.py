"""One table over run folders: encoders side by side, seeds pooled, paired differences, floors (paper Table 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from regen.evaluation.comparison_blocks import SHUFFLED, Block, Column
from regen.evaluation.comparison_cells import Cell, Run, by_seed, grouped, load, varying_settings
from regen.evaluation.comparison_table import Comparison
from regen.evaluation.scoring import EXAMPLES, REST
from regen.evaluation.statistics import Bootstrap, Estimate, ResampledSums, holm
from regen.evaluation.text_metrics import METRICS, Metric, metrics_for
from regen.runtime.costs import mean_costs

__all__ = ["ENCODERS", "Cell", "Comparison", "compare"]

ENCODERS = ("cf", "content", "both", "text", "none", "random", "noise")
"""The order of columns; other names follow in alphabetical order."""

_SINGLE = ("cf", "content")
BETTER = "the better one"
_CONSTANT = "constant"
_FLOORS = (SHUFFLED, _CONSTANT)
_ROWS_WITHOUT_SCORES = ("bleu", "rougeLsum", "similarity")  # the paper's, for a block in which nothing finished


def compare(
    cells: Sequence[Cell],
    *,
    subject: str = "both",
    baselines: Sequence[str] = _SINGLE,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares the encoders of a grid, a block per feature and per combination of the other settings that vary.

    Cells that failed, have no predictions yet or whose examples cannot be read are shown as such; the others are kept.

    Args:
        cells: runs of one grid or of several.
        subject: the encoder whose differences from others are shown.
        baselines: from which; of several, also from the better one per metric.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        ValueError: without a cell, or when two scored cells agree in encoder, seed, feature and settings.
    """
    if not cells:
        raise ValueError("there is no run to compare: 0 cells. Give a folder that holds run folders.")
    varying = varying_settings(cells)
    runs = [load(cell) for cell in cells]
    bootstraps = _Bootstraps(resamples=resamples, seed=seed)
    blocks = [
        _BlockBuilder(feature, members, bootstraps, subject, baselines).build(dict(settings))
        for (feature, settings), members in grouped(runs, varying).items()
    ]
    problems = []
    for run in runs:
        if run.examples is None:
            reason = run.error or f"no {EXAMPLES} in {run.cell.folder} yet"
            problems.append(f"{run.cell.identity(varying)}: {run.status}: {reason}")
    return Comparison(*_corrected(blocks), problems, resamples)


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
        self, feature: str, runs: Sequence[Run], bootstraps: _Bootstraps, subject: str, baselines: Sequence[str]
    ) -> None:
        names = {run.cell.encoder for run in runs}
        self.feature, self.bootstraps = feature, bootstraps
        self.subject, self.baselines = subject, baselines
        self.encoders = [name for name in ENCODERS if name in names] + sorted(names - set(ENCODERS))
        self.runs = {name: by_seed([run for run in runs if run.cell.encoder == name]) for name in self.encoders}
        pools = {name: self._pool(name, "model") for name in self.encoders}
        self.pools = {name: pool for name, pool in pools.items() if pool is not None}
        columns = dict.fromkeys(c for pool in self.pools.values() for frame in pool.frames for c in frame.columns)
        self.metrics: Mapping[str, Metric] = metrics_for(list(columns))
        if not self.pools:
            self.metrics = {name: METRICS[name] for name in _ROWS_WITHOUT_SCORES}
        self.source = subject if subject in self.pools else next(iter(self.pools), None)  # whose floors are shown
        self.floors = self._floors()
        self.notes: list[str] = []

    def build(self, settings: Mapping[str, str]) -> Block:
        """All columns: encoders, differences of the subject, floors."""
        columns = [self._encoder(name) for name in self.encoders]
        if self.subject in self.encoders:
            beside = {
                name: self._difference(self.subject, name, self.pools.get(name))
                for name in self.baselines
                if name in self.encoders
            }
            if len(self.baselines) == 1:
                columns += [replace(column, verdicts=True) for column in beside.values()]
            else:
                columns += beside.values()
            if len(beside) == len(self.baselines) > 1:
                columns.append(self._better({column.name: column for column in columns}, beside))
        if self.source and SHUFFLED in self.floors:  # what a model that does not read its histories has no lead over
            columns.append(self._difference(self.source, SHUFFLED, self.floors[SHUFFLED]))
        columns += [
            Column(name, "floor", len(pool.frames), self._estimates([pool], pool.users), faults=pool.faults)
            for name, pool in self.floors.items()
        ]
        sizes = {name: len(pool.users) for name, pool in self.pools.items()}
        if len({pool.users for pool in self.pools.values()}) > 1:
            listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            self.notes.append(f"The encoders were scored on different users ({listed}).")
        users = min(sizes.values(), default=0)
        return Block(self.feature, settings, self.metrics, columns, users, self.notes)

    def _pool(self, encoder: str, system: str) -> _Pool | None:
        """The seeds of an encoder that have rows of this system; None without any."""
        scored = [run for run in self.runs[encoder].values() if run.examples is not None]
        frames = [frame for run in scored if not (frame := run.frame(self.feature, system)).is_empty()]
        faults = [fault for run in scored for fault in run.faults(self.feature) if system != _CONSTANT]
        return _Pool(frames, faults) if frames else None

    def _encoder(self, name: str) -> Column:
        runs, pool = self.runs[name], self.pools.get(name)
        if pool is None:
            failed = any(run.status == "failed" for run in runs.values())
            return Column(name, "encoder", 0, "failed" if failed else "missing")
        for seed, run in runs.items():
            if run.examples is None:
                self.notes.append(f"{name}: seed {seed} is {run.status}; the others are pooled.")
        if pool.loses_users:
            self.notes.append(f"{name}: only the {len(pool.users):,} users that all its seeds have.")
        costs = mean_costs([run.costs for run in runs.values() if run.examples is not None])
        return Column(name, "encoder", len(pool.frames), self._estimates([pool], pool.users), costs, pool.faults)

    def _difference(self, encoder: str, baseline: str, beside: _Pool | None) -> Column:
        name = f"{encoder} vs {baseline}"
        if encoder not in self.pools or beside is None:
            return Column(name, "difference", 0, "missing")
        pair = [self.pools[encoder], beside]
        shared = pair[0].users & pair[1].users
        if pair[0].users != pair[1].users:
            counts = " and ".join(f"{len(pool.users):,}" for pool in pair)
            self.notes.append(f"{name}: only the {len(shared):,} users that both have, of {counts}.")
        seeds = min(len(pool.frames) for pool in pair)
        faults = list(dict.fromkeys(fault for pool in pair for fault in pool.faults))
        return Column(name, "difference", seeds, self._estimates(pair, shared), faults=faults)

    def _better(self, columns: Mapping[str, Column], beside: Mapping[str, Column]) -> Column:
        """The subject's difference from the baseline with the better mean, per metric.

        It is taken from that baseline's own column, with its pairing, so it is no further test. Of equal baselines it
        is the first. Metrics of which more is not better have no better one.
        """
        name = f"{self.subject} vs {BETTER}"
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
        """The floors of `both`, else of the first encoder that finished."""
        pools = {name: self._pool(self.source, name) for name in _FLOORS} if self.source else {}
        for encoder in self.encoders:  # another system's file has floors of its own, on the rows that allow them
            if self._pool(encoder, REST) is not None:
                pools |= {f"{encoder} {name}": self._pool(encoder, name) for name in _FLOORS}
        return {name: pool for name, pool in pools.items() if pool is not None}

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
