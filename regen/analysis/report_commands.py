"""Finds the commands that make finished runs again, and checks each by composing its config."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from regen.analysis.report_runs import ReportedRun
from regen.config.objects import composed_values
from regen.config.registration import register
from regen.config.schema import CONF
from regen.evaluation.cells import leaves
from regen.evaluation.comparison import ENCODERS

GROUPS = ("encoder", "source", "vertical", "narrator", "cf", "content", "adapter", "lm", "tuning")
_ELSEWHERE = ("paths", "logger", "force", "max_cost")  # settings that do not change the result of a run
_OF_TRAINER = ("trainer.precision", "trainer.max_steps")  # the only settings of the trainer that do
_WORD = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_./][\w./:-]*", re.IGNORECASE)

Overrides = dict[str, str]


def grid_command(folder: Path) -> str | None:
    """The command of a grid, from Hydra's note in its folder; None if the folder is not that of a grid."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return None
    overrides = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]["task"]
    return shlex.join(["python", "train.py", "-m", *map(str, overrides)])


def run_commands(runs: Sequence[ReportedRun]) -> list[str]:
    """As few `train.py` commands as possible that make exactly these runs.

    If no options of this version give the config of a run, its command uses the config file in its folder.
    """
    rows: list[dict[str, tuple[str, ...]]] = []
    others: list[str] = []
    with _composing():
        default = _overrides(_composed(())) or {}
        for run in sorted(runs, key=lambda run: (*ENCODERS, run.encoder).index(run.encoder)):
            if not run.config:
                continue
            if (overrides := _overrides(run.config)) is not None:
                rows.append({key: (value,) for key, value in overrides.items()})
            else:
                others.append(
                    shlex.join(["python", "train.py", "--config-dir", str(run.folder), "--config-name", "config"])
                )
    return [_command(row, default) for row in _merged(rows)] + others


def _overrides(config: Mapping[str, Any]) -> Overrides | None:
    """The overrides with which `train` composes this config; None if there are none."""
    chosen = {group: option for group in GROUPS if (option := _option(group, config.get(group)))}
    names = list(config["feature"])
    chosen["feature"] = names[0] if len(names) == 1 else f"[{','.join(names)}]"
    try:
        for key, value in _differences(config, _composed(_joined(chosen))).items():
            if (literal := _literal(value)) is None:
                return None
            chosen[key] = literal
        if _differences(config, _composed(_joined(chosen))):
            return None
    except (HydraException, OmegaConfBaseException):
        return None
    return chosen | {"seed": str(config["seed"])}


def _option(group: str, node: Mapping[str, Any] | None) -> str | None:
    """The option of a group that a node of a config was made from, by its name or target."""
    named = {(key, node.get(key)) for key in ("name", "_target_")} if node else set()
    return next((option for option, name in _options(group).items() if name in named), None)


@cache
def _options(group: str) -> dict[str, tuple[str, Any]]:
    """The options of a group, each with its name, or its target if it has no name."""
    nodes = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CONF.glob(f"{group}/*"))}
    keys = {option: "name" if "name" in node else "_target_" for option, node in nodes.items()}
    return {option: (key, nodes[option].get(key)) for option, key in keys.items()}


def _differences(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config that differ from another config, apart from those that do not change a run."""
    theirs = dict(leaves(other))
    return {
        ".".join(path): value
        for path, value in leaves(config)
        if path[0] not in _ELSEWHERE
        and (path[0] != "trainer" or ".".join(path) in _OF_TRAINER)
        and path != ("seed",)
        and (path not in theirs or theirs[path] != value)
    }


def _literal(value: Any) -> str | None:
    """A value for Hydra's command line; None if it does not fit on one line."""
    if isinstance(value, list):
        parts = [_literal(part) for part in value]
        return None if None in parts else f"[{','.join(map(str, parts))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if "\n" in value:
        return None
    return value if _WORD.fullmatch(value) else '"' + value.replace('"', '\\"') + '"'


def _merged(rows: Sequence[Mapping[str, tuple[str, ...]]]) -> list[dict[str, tuple[str, ...]]]:
    """Merges rows that differ in one key into one row with all of its values, key after key."""
    merged = [dict(row) for row in rows]
    for key in dict.fromkeys(["encoder", *(key for row in rows for key in row)]):
        by_rest: dict[tuple[Any, ...], list[dict[str, tuple[str, ...]]]] = {}
        for row in merged:
            rest = tuple((name, values) for name, values in row.items() if name != key)
            by_rest.setdefault((key in row, rest), []).append(row)
        merged = [
            {name: _values(alike, name) if name == key else values for name, values in alike[0].items()}
            for alike in by_rest.values()
        ]
    return merged


def _values(rows: Sequence[Mapping[str, tuple[str, ...]]], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for row in rows for value in row[name]))


def _command(row: Mapping[str, tuple[str, ...]], default: Overrides) -> str:
    words = [
        f"{key}={','.join(values)}"
        for key, values in row.items()
        if key == "encoder" or values != (default.get(key, ""),)
    ]
    sweep = ["-m"] if any(len(values) > 1 for values in row.values()) else []
    return shlex.join(["python", "train.py", *sweep, *words])


def _joined(overrides: Overrides) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in overrides.items())


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The config of `train` with overrides; cached, because the runs of a grid share most of them."""
    return composed_values(compose("train", list(overrides)), complete=False)


@contextmanager
def _composing() -> Iterator[None]:
    """Lets `_composed` compose, even within a Hydra job."""
    register()
    job = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = job
