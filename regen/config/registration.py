"""Registers the schema and the resolvers of `--help` and the YAML files with Hydra."""

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
    """The groups of `conf/` with their options, as text for `--help`."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        groups.setdefault(path.parent.name, []).append(path.stem)
    return "\n".join(f"  {group}: {', '.join(values)}" for group, values in groups.items())


def numbers_help(_root_: Any) -> str:
    """Range and unit of each number in a composed config, as text for `--help`."""
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
    """How many of the wanted trials of an Optuna study, by its SQLite file, are not complete yet."""
    if not Path(study).is_file():
        return wanted
    with closing(sqlite3.connect(study)) as connection:
        (done,) = connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
    return max(0, wanted - int(done))


def vertical_file(source: str, key: str, *, _root_: Any) -> str:
    """The name of the vertical's files in a source.

    Args:
        source: Name of the source, for the message.
        key: Key in the node `vertical`.

    Raises:
        ValueError: If the source does not have the vertical.
    """
    if not (file := _root_.vertical[key]):
        raise ValueError(f"source={source} has no files of vertical={_root_.vertical.name}. Choose another vertical.")
    return str(file)


def _the_store(memo: dict[int, Any]) -> ConfigStore:
    return ConfigStore.instance()


@cache
def register() -> None:
    """Registers the resolvers, and each class of the schema as `/schema/<class>` for defaults lists."""
    for resolver in (groups_help, numbers_help, trials_left, vertical_file):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
    store = ConfigStore.instance()
    # Hydra deep-copies its config sources, with the store, for every group that --help lists. That takes seconds and
    # is not needed: nothing writes to the store of a source, and `ConfigStore.load` copies what it returns.
    vars(store)["__deepcopy__"] = _the_store
    for name, node in vars(schema).items():
        if is_dataclass(node):
            store.store(group="schema", name=name, node=node)
