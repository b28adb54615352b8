"""Schema of the primary configs: one class for each command."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from regen.config.ranges import number, random_seed
from regen.config.schema.base import AdapterChoice, Component, DeviceName, Precision, Settings, TuningChoice
from regen.config.schema.data import Endpoint, Paths, Vertical
from regen.config.schema.model import CF, Content, Encoder
from regen.config.schema.training import Compare, Data, Evaluation, Feature, Task, Trainer, Training


@dataclass
class PrepareConfig(Settings):
    source: Component = MISSING
    vertical: Vertical = MISSING
    paths: Paths = MISSING
    force: bool = False


@dataclass
class NarratedConfig(PrepareConfig):
    narrator: Any = MISSING  # one of the classes above, by its name
    max_cost: float | None = number(0, 1_000_000_000, "dollars", default=None)


@dataclass
class NarrateConfig(NarratedConfig):
    dry_run: bool = False
    engine: Component = MISSING


@dataclass
class RateConfig(NarrateConfig):
    rater: dict[str, Endpoint] = MISSING
    run: str | None = None
    draws: int = number(1, 1000, "answers per question")
    users: int | None = number(1, 1_000_000_000, "users whose narratives are rated", default=None)
    controls: float = number(0, 1, "share of users with a control narrative")


@dataclass
class SideBySideConfig(Settings):
    a: str = MISSING
    b: str = MISSING
    rater: dict[str, Endpoint] = MISSING
    users: int | None = number(1, 1_000_000_000, "users whose narratives are compared", default=None)
    engine: Component = MISSING
    paths: Paths = MISSING
    max_cost: float | None = number(0, 1_000_000_000, "dollars", default=None)
    force: bool = False


@dataclass
class ReleaseConfig(NarratedConfig):
    split: Any = MISSING  # one of the classes above, by its name
    folder: str = MISSING
    ratings: str | None = None
    push_to: str | None = None
    private: bool = True
    license: str = MISSING


@dataclass
class DashboardConfig(Settings):
    project: str = MISSING
    entity: str | None = None
    name: str = MISSING
    features: list[str] = MISSING
    metrics: list[str] = MISSING
    by: str = MISSING
    group: str | None = None
    dry_run: bool = False


@dataclass
class EncodeConfig(NarratedConfig):
    cf: CF = MISSING
    content: Content = MISSING
    split: Any = MISSING  # one of the classes above, by its name
    engine: Component = MISSING


@dataclass
class TrainConfig(EncodeConfig):
    encoder: Encoder = MISSING
    adapter: AdapterChoice = MISSING
    lm: Component = MISSING
    tuning: TuningChoice = MISSING
    feature: dict[str, Feature] = MISSING
    task: Task = field(default_factory=Task)
    data: Data = MISSING
    training: Training = MISSING
    evaluation: Evaluation = MISSING
    trainer: Trainer = MISSING
    optimizer: Component = MISSING
    scheduler: Component = MISSING
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    compare: Compare = field(default_factory=Compare)
    score: bool = True
    trials: int | None = number(1, 100_000, "trials of a search", default=None)
    seed: int = random_seed("seed of initialisation, batches and controls")


@dataclass
class EvaluateConfig(Settings):
    run: str | None = None
    runs: str | None = None
    columns: str | None = None
    reference: str | None = None
    against: str | None = None
    device: DeviceName | None = None
    predictions: str | None = None
    recommendations: str | None = None
    note: str | None = None
    diagnose: bool = False
    all: bool = False
    evaluation: Evaluation = MISSING
    engine: Component = MISSING
    paths: Paths = MISSING
    force: bool = False


@dataclass
class ExportConfig(Settings):
    run: str = MISSING
    out: str = MISSING
    push_to: str | None = None
    private: bool = True


class BackendName(StrEnum):
    transformers = "transformers"
    vllm = "vllm"


@dataclass
class ServeConfig(Settings):
    checkpoint: str = MISSING
    data: str | None = None
    backend: BackendName = BackendName.transformers
    vllm: str = MISSING
    precision: Precision | None = None
    device: DeviceName = DeviceName.auto
    host: str = MISSING
    port: int = number(0, 65_535, "TCP port, 0 for a free one")
    rows: int = number(1, 65_536, "narratives generated at once")
    queue: int = number(0, 1_000_000, "narratives in the queue")
    timeout: float = number(0, 86_400, "seconds for a request", above=True)
    max_body_bytes: int = number(1, 1_073_741_824, "bytes of a request")
    api_key_env: str = MISSING
    dry_run: bool = False


@dataclass
class ReportConfig(Settings):
    runs: str = MISSING
    out: str | None = None
    users: int = number(1, 1_000_000, "test users shown side by side")
    seed: int = random_seed()
    figures: bool = MISSING


@dataclass
class DemoConfig(Settings):
    runs: str = MISSING
    device: DeviceName = DeviceName.auto
    host: str = MISSING
    port: int = number(0, 65_535, "TCP port, 0 for a free one")
