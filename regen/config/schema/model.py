"""Schema of the model: encoder, adapter, language model and tuning."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from regen.config.ranges import number, random_seed
from regen.config.schema.base import Component, NamedTarget, Settings, Target


@dataclass
class Encoder(Settings):
    name: str = MISSING
    parts: list[Any] = field(default_factory=list)
    dim: int | None = number(1, 65_536, "width of a control's vectors", default=None)
    max_tokens: int | None = number(1, 1_000_000, "tokens of a history written as text", default=None)


@dataclass
class ALS(Target):
    factors: int = number(1, 65_536, "width of the CF vectors")
    regularization: float = number(0, 1_000_000, "L2 penalty of the factors")
    iterations: int = number(1, 100_000, "passes over the interactions")
    seed: int = random_seed()


@dataclass
class BPR(ALS):
    learning_rate: float = number(0, 10, "learning rate of the factors", above=True)


@dataclass
class PPMI(Target):
    factors: int = number(1, 65_536, "width of the CF vectors")
    window: int = number(1, 1_000, "purchases on each side that count as close")
    decay: float = number(0, 1, "weight of a purchase relative to a closer one", above=True)
    seed: int = random_seed()


@dataclass
class SASRec(Target):
    factors: int = number(2, 65_536, "width of the CF vectors")
    dropout: float = number(0, 0.99, "share of activations that are dropped")
    epochs: int = number(1, 100_000, "passes over the sequences")
    seed: int = random_seed()
    python: str = MISSING


@dataclass
class CF(Settings):
    name: str = MISSING
    alpha: float = number(0, 1_000_000, "confidence added by the best rating")
    model: Component = MISSING


@dataclass
class Content(Settings):
    name: str = MISSING
    pretrained: str = MISSING
    batch_size: int = number(1, 65_536, "texts encoded at once")


class Init(StrEnum):
    random = "random"
    ridge = "ridge"


@dataclass
class LinearAdapter(NamedTarget):
    init: Init = MISSING
    ridge: float = number(0, 1_000_000, "penalty of the ridge start, in mean variances of the inputs", above=True)
    lr: float = number(0, 10, "peak learning rate", above=True)


@dataclass
class MLPAdapter(LinearAdapter):
    hidden_dim: int = number(1, 1_000_000, "width of the hidden layer")
    residual: bool = MISSING


@dataclass
class TransformerAdapter(LinearAdapter):
    hidden_dim: int = number(1, 1_000_000, "width of the encoder")
    layers: int = number(1, 1000, "encoder layers")
    heads: int = number(1, 1000, "attention heads")
    max_history: int = number(1, 100_000, "latest interactions of a history")


@dataclass
class PackagedLM(NamedTarget):
    package: str = MISSING


@dataclass
class PretrainedLM(NamedTarget):
    pretrained: str = MISSING
    revision: str | None = None


@dataclass
class TinyLM(NamedTarget):
    width: int = number(1, 65_536, "width of the hidden state")
    layers: int = number(1, 1000, "decoder layers")
    heads: int = number(1, 1000, "attention heads")
    seed: int = random_seed()


@dataclass
class Tuning(NamedTarget):
    lr: float = number(0, 10, "peak learning rate")


@dataclass
class LoRA(Tuning):
    rank: int = number(1, 65_536, "rank of the updates")
    alpha: float = number(0, 1_000_000, "scale of the updates, divided by the rank", above=True)
    dropout: float = number(0, 0.99, "share of inputs dropped in training")
    target_modules: Any = None
