"""Base classes of the schema, and choices that several commands share."""

from dataclasses import FrozenInstanceError, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

if TYPE_CHECKING:
    from regen.config.objects import AdapterChoice as AdapterChoice
    from regen.config.objects import Component as Component
    from regen.config.objects import TuningChoice as TuningChoice
else:  # OmegaConf takes any node here; its YAML file names the schema
    AdapterChoice = Component = TuningChoice = Any


class Settings:
    """Base of the schema's classes, which are immutable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            raise FrozenInstanceError(f"{type(self).__name__}.{name} cannot be set again. Use dataclasses.replace.")
        super().__setattr__(name, value)


@dataclass
class Target(Settings):
    """A node that names the class or function to call."""

    _target_: str = MISSING


@dataclass
class NamedTarget(Target):
    """The same with a name, which tables show."""

    name: str = MISSING


class DeviceName(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    int8 = "int8"
