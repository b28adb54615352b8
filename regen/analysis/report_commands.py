"""From finished runs back to the commands that make them again, each checked by composing it."""

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
_ELSEWHERE = ("paths", "logger", "force", "max_cost")  # where a run is made, not what it is
_OF_TRAINER = ("trainer.precision", "trainer.max_steps")  # of the trainer these alone make another run
_WORD = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_./][\w./:-]*", re.IGNORECASE)

Overrides = dict[str, str]


def grid_command(folder: Path) -> str | None:
    """The command of a grid, from what Hydra noted in its folder; None where the folder is not a grid's."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return None
    overrides = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]["task"]
    return shlex.join(["python", "train.py", "-m", *map(str, overrides)])


def run_commands(runs: Sequence[ReportedRun]) -> list[str]:
    """As few `train.py` commands as make exactly these runs.

    A run whose config no options of this version give is trained from the config file in its folder.
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
    """What `train` has to be given to compose this config; None if no options do."""
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
    """The file of a group whose name, or target where it has no name, a node of a config has."""
    named = {(key, node.get(key)) for key in ("name", "_target_")} if node else set()
    return next((option for option, name in _options(group).items() if name in named), None)


@cache
def _options(group: str) -> dict[str, tuple[str, Any]]:
    """For every file of a group the name in it, or the target where it has no name."""
    nodes = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CONF.glob(f"{group}/*"))}
    keys = {option: "name" if "name" in node else "_target_" for option, node in nodes.items()}
    return {option: (key, nodes[option].get(key)) for option, key in keys.items()}


def _differences(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config that another one does not have, as far as they make another run."""
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
    """A value as Hydra's command line takes it; None where it cannot be written on a line."""
    if isinstance(value, list):
        parts = [_literal(part) for part in value]
        return None if None in parts else f"[{','.join(map(str, parts))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if "\n" in value:
        return None
    return value if _WORD.fullmatch(value) else '"' + value.replace('"', '\\"') + '"'


def _merged(rows: Sequence[Mapping[str, tuple[str, ...]]]) -> list[dict[str, tuple[str, ...]]]:
    """Rows that differ in one key alone become one row with all of its values, key after key."""
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
    """The config of `train` with overrides; remembered, because runs of a grid share most of them."""
    return composed_values(compose("train", list(overrides)), complete=False)


@contextmanager
def _composing() -> Iterator[None]:
    """Lets `_composed` compose, also within a Hydra job."""
    register()
    job = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = job
