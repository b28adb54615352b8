"""Builds one block of a comparison: pools the seeds of each column, and estimates values and differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from regen.evaluation.comparison_blocks import CLOSED_FORM, SHUFFLED, Block, Column
from regen.evaluation.comparison_cells import Run, by_seed
from regen.evaluation.identification import RECIPROCAL
from regen.evaluation.scoring import REST
from regen.evaluation.statistics import Bootstrap, Estimate, ResampledSums
from regen.evaluation.text_metrics import METRICS, Metric, metrics_for
from regen.runtime.costs import mean_costs

BETTER = "the better one"
_CONSTANT = "constant"
_ROWS_WITHOUT_SCORES = ("similarity", "bleu", "rougeLsum")  # the paper's, for a block in which no run finished


@dataclass(frozen=True)
class Contrast:
    """The comparisons of a table.

    Attributes:
        pairs: columns and their baselines.
        joint: the encoder that is compared with the better one of its parts; None for none.
        source: the column whose floors are shown, if it was scored.
    """

    pairs: Sequence[tuple[str, str]]
    joint: str | None
    source: str


class _Pool:
    """Examples of one system, one frame per seed, restricted to the users that all its seeds have."""

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


class BlockBuilder:
    """Turns the runs of one feature and combination of settings into a block.

    Args:
        feature: the output feature.
        runs: the runs of the block.
        bootstrap_of: the bootstrap of a set of users.
        key: the setting whose values are the columns.
        values: its values, in the order of columns.
        contrast: the comparisons.
    """

    def __init__(
        self,
        feature: str,
        runs: Sequence[Run],
        bootstrap_of: Callable[[frozenset[str]], Bootstrap],
        key: str,
        values: Sequence[str],
        contrast: Contrast,
    ) -> None:
        of_block = {run.cell.value(key) for run in runs}
        self.feature, self.bootstrap_of, self.contrast = feature, bootstrap_of, contrast
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
        """Builds all columns: models, differences, floors."""
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
        for floor in (SHUFFLED, CLOSED_FORM):  # a model that does not read its histories does not beat these
            if self.source and floor in self.floors:
                columns.append(self._difference(self.source, floor, self.floors[floor]))
        columns += [
            Column(name, "floor", len(pool.frames), self._estimates([pool], pool.users), faults=pool.faults)
            for name, pool in self.floors.items()
        ]
        sizes = {name: len(pool.users) for name, pool in self.pools.items()}
        users = min(sizes.values(), default=0)
        if len({pool.users for pool in self.pools.values()}) > 1:
            listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            self.notes.append(f"The models were scored on different users ({listed}); each column is over its own.")
            if any(metric.chance == RECIPROCAL for metric in self.metrics.values()):
                self.notes.append(f"Chance is that among {users:,} users; it is lower among more.")
        records = [run.record for of in self.runs.values() for run in of.values()]
        if splits := sorted({str(record["split"]) for record in records if record.get("split")}):
            self.notes.append(f"Split: {'; '.join(splits)}.")
        noted = {name: run.cell.note for name, of in self.runs.items() for run in of.values() if run.cell.note}
        self.notes += [f"{name}: {note}" for name, note in noted.items()]
        return Block(self.feature, settings, self.metrics, columns, users, self.notes)

    def _pool(self, name: str, system: str) -> _Pool | None:
        """The seeds of a column with rows of this system; None without any."""
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
        """The joint encoder's difference from the part with the better mean, per metric.

        The estimate is that of the part's own column, so it is no further test. The first of equal parts counts.
        Metrics without a better direction have no estimate.
        """
        name = f"{self.contrast.joint} vs {BETTER}"
        if any(isinstance(column.content, str) for column in beside.values()):
            return Column(name, "difference", 0, "missing")
        chosen: dict[str, str] = {}
        estimates = {metric: Estimate.undefined(None) for metric in self.metrics}
        for metric in self.metrics.values():
            values = {
                other: estimate.value
                for other in beside
                if isinstance(estimate := columns[other].estimate(metric), Estimate)
            }
            if metric.higher_is_better and not any(map(math.isnan, values.values())):
                best = chosen[metric.name] = max(values, key=values.__getitem__)
                if isinstance(difference := beside[best].estimate(metric), Estimate):
                    estimates[metric.name] = difference
        return Column(
            name,
            "difference",
            min(column.seeds for column in beside.values()),
            estimates,
            faults=list(dict.fromkeys(fault for column in beside.values() for fault in column.faults)),
            beside=chosen,
            verdicts=True,
        )

    def _floors(self) -> dict[str, _Pool]:
        """The floors of the source, and those of other systems' files."""
        pools = {}
        if self.source:
            scored = [run.examples for run in self.runs[self.source].values() if run.examples is not None]
            systems = dict.fromkeys(name for of in scored for name in of["system"].unique(maintain_order=True))
            pools = {name: self._pool(self.source, name) for name in systems if name not in ("model", REST)}
        for model in self.names:  # another system's file has its own floors, on the rows that allow them
            if self._pool(model, REST) is not None:
                pools |= {f"{model} {name}": self._pool(model, name) for name in (SHUFFLED, _CONSTANT)}
        return {name: pool for name, pool in pools.items() if pool is not None}

    def _estimates(self, pools: Sequence[_Pool], users: frozenset[str]) -> dict[str, Estimate]:
        """Every metric that all runs have: the value of one pool, or the paired difference of two."""
        if not users:
            return {name: Estimate.undefined("no user in common") for name in self.metrics}
        bootstrap = self.bootstrap_of(users)
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
