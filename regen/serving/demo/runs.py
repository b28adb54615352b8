"""Finds the runs that the demo shows: the newest `cf`, `content` and `both` on the same data."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regen.analysis.report_commands import run_commands
from regen.analysis.report_runs import ReportedRun, open_runs
from regen.evaluation.comparison import ENCODERS
from regen.training.run import WEIGHTS

SHOWN = ("cf", "content", "both")
Trio = dict[str, ReportedRun]  # by encoder, in the order of SHOWN


def newest_grid(folder: Path) -> list[Trio]:
    """The runs to show: one of each encoder for each feature of a grid.

    Trios that differ only in the feature belong to one grid. Of several grids, the one with the newest trio is shown.

    Args:
        folder: A folder of runs, or of a grid.

    Returns:
        Trios, newest first; no two write the same feature.

    Raises:
        FileNotFoundError: If the folder holds no runs.
        ValueError: If no trio is complete, or its runs were trained on different data.
    """
    finished = [run for run in open_runs(folder) if run.encoder in SHOWN and run.finished]
    parts = _grouped(finished, feature=True)
    complete = sorted((part for part in parts if len(part) == len(SHOWN)), key=_finished_at, reverse=True)
    if not complete:
        nearest = max(parts, key=lambda part: (len(part), _finished_at(part)), default={})
        raise ValueError(_nothing_complete(folder, nearest))
    newest = _settings(complete[0]["both"], feature=False)
    trios: list[Trio] = []
    for trio in complete:
        shown = {feature for other in trios for feature in features(other)}
        if _settings(trio["both"], feature=False) == newest and not shown & set(features(trio)):
            trios.append(trio)
    _check_same_data([run for trio in trios for run in trio.values()])
    return trios


def features(trio: Trio) -> list[str]:
    """Features that a trio's models write."""
    return list(trio["both"].config["feature"])


def _grouped(runs: Sequence[ReportedRun], *, feature: bool) -> list[Trio]:
    """Groups of runs that differ only in their encoder, with the newest of equal runs."""
    groups: dict[str, Trio] = {}
    for run in sorted(runs, key=lambda run: (ENCODERS.index(run.encoder), _weights_at(run))):
        groups.setdefault(_settings(run, feature=feature), {})[run.encoder] = run
    return list(groups.values())


def _settings(run: ReportedRun, *, feature: bool) -> str:
    """A key that runs share if they differ only in their encoder, or, unless `feature`, in their feature."""
    cell = {name: value for name, value in run.cell.settings.items() if name != "feature"}
    return json.dumps([cell, run.cell.seed, list(run.config["feature"]) if feature else None])


def _weights_at(run: ReportedRun) -> float:
    return (run.folder / WEIGHTS).stat().st_mtime


def _finished_at(trio: Trio) -> float:
    return max(map(_weights_at, trio.values()))


def _nothing_complete(folder: Path, nearest: Trio) -> str:
    if not nearest:
        return f"{folder}: no finished run with encoder={' or '.join(SHOWN)}. Train all three: make grid"
    run = next(iter(nearest.values()))
    missing = [encoder for encoder in SHOWN if encoder not in nearest]
    commands = run_commands([replace(run, config={**run.config, "encoder": {"name": name}}) for name in missing])
    return (
        f"{folder}: the demo shows {', '.join(SHOWN)} of one grid. Beside {' and '.join(nearest)} "
        f"({', '.join(run.folder.name for run in nearest.values())}) there is no {' and no '.join(missing)}. "
        f"Train what is missing: {' && '.join(commands)}"
    )


def _check_same_data(runs: Sequence[ReportedRun]) -> None:
    """Checks that all runs were trained on the same artefacts.

    Raises:
        ValueError: If not; the message names two runs.
    """
    seen: dict[str, tuple[str, ReportedRun]] = {}
    for run in runs:
        for name, fingerprint in run.record.get("inputs", {}).items():
            before, other = seen.setdefault(name, (fingerprint, run))
            if before != fingerprint:
                raise ValueError(
                    f"{other.folder.name} was trained on {name} data {before}, {run.folder.name} on {fingerprint}: "
                    "side by side they would not read the same history. Give a grid's folder, "
                    "runs=outputs/grids/DATE/TIME, or train the older one again."
                )
