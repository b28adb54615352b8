"""Puts the schema, and what `--help` and the YAML files compute, where Hydra finds them."""

import sqlite3
from contextlib import closing
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from regen.config import schema
from regen.config.ranges import ranges
from regen.config.schema import CONF


def groups_help() -> str:
    """Every group of `conf/` with its values, for `--help`; the schema's own groups are no one's choice."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        groups.setdefault(path.parent.name, []).append(path.stem)
    return "\n".join(f"  {group}: {', '.join(values)}" for group, values in groups.items())


def numbers_help(_root_: Any) -> str:
    """The range and the unit of each number of a composed config, for `--help`."""
    lines: list[str] = []

    def walk(node: Any) -> None:
        kind = OmegaConf.get_type(node)
        known = ranges(kind) if kind is not None and is_dataclass(kind) else {}
        for key in node:
            if key in known:
                lines.append(f"  {node._get_full_key(key):40} {known[key]!s:26} {known[key].unit}")
            elif key != "hydra" and isinstance(below := node._get_node(key), DictConfig) and not below._is_none():
                walk(below)

    walk(_root_)
    return "\n".join(lines)


def trials_left(study: str, wanted: int) -> int:
    """How many of a search's trials are still to do: those with a value in the study's file are done."""
    if not Path(study).is_file():
        return wanted
    with closing(sqlite3.connect(study)) as connection:
        (done,) = connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
    return max(0, wanted - int(done))


def vertical_file(source: str, key: str, *, _root_: Any) -> str:
    """The name of a vertical's files in a source, for the YAML file of that source.

    Args:
        source: Its name, for the message.
        key: Of the vertical.

    Raises:
        ValueError: If the source has no such vertical.
    """
    if not (file := _root_.vertical[key]):
        raise ValueError(f"source={source} has no files of vertical={_root_.vertical.name}. Choose another vertical.")
    return str(file)


def _the_store(memo: dict[int, Any]) -> ConfigStore:
    return ConfigStore.instance()


@cache
def register() -> None:
    """Puts each class of the schema where a YAML file's defaults list finds it: `/schema/<class>`."""
    for resolver in (groups_help, numbers_help, trials_left, vertical_file):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
    store = ConfigStore.instance()
    # Hydra copies its config sources, and the store in them, for every group that --help lists: seconds. A copy is
    # not needed, because nothing writes to a source's store and `ConfigStore.load` copies what it returns.
    vars(store)["__deepcopy__"] = _the_store
    for name, node in vars(schema).items():
        if is_dataclass(node):
            store.store(group="schema", name=name, node=node)
