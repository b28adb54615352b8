"""Turns a composed config into typed, immutable objects, and these into plain values.

A node with `_target_` becomes a `Component`, which can build its target. Any other node becomes an object of its class
in `regen.config.schema`. The code below the commands takes these objects and no `DictConfig`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast, get_args, get_type_hints

import hydra
import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from regen.config import schema
from regen.config.errors import check
from regen.config.registration import register
from regen.config.targets import check_target

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Component:
    """A node that names a class or function in `_target_`, and its arguments.

    Attributes:
        node: The whole node.
        run_options: Keys of the node that are not arguments of the target.
    """

    node: Mapping[str, Any]
    run_options: ClassVar[tuple[str, ...]] = ()

    @property
    def target(self) -> str:
        """Dotted path of the class or function."""
        return str(self.node["_target_"])

    @property
    def name(self) -> str:
        """Its name in tables; empty if the node has none."""
        return str(self.node.get("name", ""))

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the target."""
        return {key: value for key, value in self.node.items() if key not in (*self.run_options, "_target_")}

    def build(self, *args: Any, **more: Any) -> Any:
        """Calls the target with its arguments and the given ones; lists and mappings are plain Python.

        Raises:
            ValueError: If the target cannot be loaded, or raises one.
        """
        node = {"_target_": self.target, **self.options, **more, "_convert_": "all"}
        try:
            return instantiate(node, *args)
        except InstantiationException as error:
            if isinstance(error.__cause__, ValueError):
                raise error.__cause__ from None
            check_target(self.target)
            raise


class _Trained(Component):
    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return float(self.node["lr"])


class TuningChoice(_Trained):
    """The `tuning` of a run: a function that makes parts of the LM trainable, and their learning rate."""

    run_options = ("name", "lr")


class AdapterChoice(_Trained):
    """The `adapter` of a run: its class, its start and its learning rate."""

    run_options = ("name", "lr", "init", "ridge")

    @property
    def ridge(self) -> float | None:
        """Penalty of the ridge start, as a multiple of the inputs' mean variance; None for a random start."""
        return float(self.node["ridge"]) if self.node["init"] == "ridge" else None


_COMPONENTS: dict[str, type[Component]] = {"adapter": AdapterChoice, "tuning": TuningChoice}
_BY_NAME: dict[str, dict[str, type[Any]]] = {  # classes of nodes by the node's `name`
    "narrator": {"source": schema.Narrator, "template": schema.WritingNarrator, "openai": schema.OpenAINarrator},
    "split": {"users": schema.UsersSplit, "time": schema.TimeSplit, "file": schema.FileSplit},
}


def compose(overrides: Sequence[str] = (), *, root: str = "train", config_dir: Path | None = None) -> Any:
    """Composes the config of a command.

    Args:
        overrides: As on the command line, for example `["encoder=cf", "trainer.max_epochs=2"]`.
        root: The command: `train`, `prepare`, `encode` or another one.
        config_dir: A folder with config groups of your own, as for `--config-dir`.

    Returns:
        An immutable object of the command's class in `regen.config.schema`, such as `TrainConfig`.

    Raises:
        HydraException: If a key, value or option is wrong, or a number is out of its range.
    """
    register()
    more = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.resolve()}]"]
    with hydra.initialize_config_dir(str(schema.CONF), version_base="1.3"):
        cfg = hydra.compose(root, [*more, *overrides])
    check(cfg)
    return typed(cfg)


def typed(cfg: DictConfig) -> Any:
    """Turns a composed config into an object of its root class.

    Raises:
        MissingMandatoryValue: If a value without default is not set.
    """
    return build_object(cast("type[Any]", OmegaConf.get_type(cfg)), composed_values(cfg, complete=True))


def composed_values(cfg: Any, *, complete: bool) -> dict[str, Any]:
    """Turns a composed `DictConfig` into plain JSON values.

    Raises:
        MissingMandatoryValue: If `complete` is true and a value is not set; otherwise such a value stays `???`.
    """
    values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=complete, enum_to_str=True)
    return cast("dict[str, Any]", values)


def read_run_config(folder: Path) -> schema.TrainConfig:
    """Reads the config of a run from the run's folder.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If another version of regen made the run.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no config.yaml in it.")
    try:
        return build_object(schema.TrainConfig, yaml.safe_load(path.read_text(encoding="utf-8")))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder}: another version of regen made this run ({error}). Train it again with this version."
        ) from error


def plain(value: Any) -> Any:
    """Turns a config object into plain JSON values, as in a run's `config.yaml`."""
    if isinstance(value, Component):
        return dict(value.node)
    if dataclasses.is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def build_object(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds an object of one of the schema's classes from plain values.

    Raises:
        TypeError: If a setting is missing or unknown. Defaults of the schema are not used here.
    """
    if missing := {item.name for item in dataclasses.fields(cast("Any", cls))} - values.keys():
        raise TypeError(f"{cls.__name__} lacks {', '.join(sorted(missing))}")
    hints = get_type_hints(cls)
    return cls(**{name: _value(name, hints.get(name), value) for name, value in values.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _COMPONENTS.get(name, Component)(value)
        if name in _BY_NAME:
            return build_object(_BY_NAME[name][value["name"]], value)
        inner = next((of for of in (hint, *get_args(hint)) if dataclasses.is_dataclass(of)), None)
        if inner is None:
            return {key: _value(key, None, item) for key, item in value.items()}
        if dataclasses.is_dataclass(hint):
            return build_object(cast("type[Any]", hint), value)
        return {key: build_object(cast("type[Any]", inner), item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_value(name, None, item) for item in value)
    kind = next((of for of in (hint, *get_args(hint)) if isinstance(of, type) and issubclass(of, StrEnum)), None)
    return kind(value) if kind is not None and value is not None else value
