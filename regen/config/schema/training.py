"""Schema of the training and the evaluation of a model."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from regen.config.ranges import number, random_seed
from regen.config.schema.base import Component, Precision, Settings, Target


@dataclass
class Feature(Settings):
    prompt: str = MISSING
    withhold_final_review: bool = MISSING
    epochs: int = number(1, 100_000, "epochs if trainer.max_epochs is null", default=1)


class TaskName(StrEnum):
    narrate = "narrate"
    recommend = "recommend"
    converse = "converse"


@dataclass
class Task(Settings):
    name: TaskName = TaskName.narrate
    exclude_bought: bool = True
    train_users: int | None = number(1, 1_000_000_000, "training users of the LM", default=None)
    decay: float | None = number(0, 1, "weight of a purchase relative to the next one", above=True, default=None)
    ridge: float | None = number(0, 1_000_000, "penalty of the closed form on histories", above=True, default=None)
    item_ridge: float = number(0, 1_000_000, "penalty of the closed form on items", above=True, default=0.003)
    folds: int = number(2, 1000, "folds of the training users", default=5)
    narrative_weight: float = number(0, 1, "weight of the narrative in the loss of task=converse", default=0.5)

    @property
    def ranks(self) -> bool:
        """Whether the task ranks items."""
        return self.name != TaskName.narrate


@dataclass
class Data(Settings):
    max_history: int = number(1, 100_000, "latest interactions of a history")
    max_narrative_tokens: int | None = number(1, 1_000_000, "tokens of a narrative in training", default=None)
    critiques: bool = False
    shared_category: float = number(0, 1, "shared part of the category path between two purchases", default=0.0)


class Mode(StrEnum):
    min = "min"
    max = "max"


@dataclass
class Training(Settings):
    batch_size: int = number(1, 65_536, "examples of a step, over all processes")
    monitor: str = MISSING
    mode: Mode = MISSING
    narratives_at_validation: int = number(0, 100_000, "narratives written at each validation")
    checkpoint_seconds: float = number(0, 86_400, "seconds between checkpoints")
    gradient_checkpointing: bool = MISSING
    compile: bool = MISSING
    num_workers: int | None = number(0, 1000, "worker processes of the data loader", default=None)


@dataclass
class Optimizer(Target):
    weight_decay: float = number(0, 10, "weight decay")


@dataclass
class AdamW(Optimizer):
    betas: list[float] = MISSING
    eps: float = number(0, 1, "added to the denominator", above=True)


@dataclass
class ScheduleFree(AdamW):
    warmup_steps: int = number(0, 10**9, "warm-up steps")


@dataclass
class Schedule(Target):
    warmup_share: float = number(0, 0.99, "share of warm-up steps")


@dataclass
class EarlyStopping(Target):
    monitor: str = MISSING
    mode: str = MISSING
    patience: int = number(1, 10**9, "validations without improvement before training stops")
    min_delta: float = number(0, 10**9, "smallest change that counts as an improvement")
    check_on_train_epoch_end: bool = MISSING


@dataclass
class Checkpoint(Target):
    monitor: str = MISSING
    mode: str = MISSING
    filename: str = MISSING
    save_top_k: int = number(0, 1, "1 to keep the best weights, 0 for the last ones")
    enable_version_counter: bool = MISSING


@dataclass
class ProgressBar(Target):
    refresh_rate: int = number(0, 10**9, "steps between two updates; 0 for no bar")


@dataclass
class Evaluation(Settings):
    batch_size: int = number(1, 65_536, "rows decoded at once")
    endpoint: str | None = None
    precision: Precision | None = None
    generation: dict[str, Any] = MISSING
    similarity: str = MISSING
    rouge_stemmer: bool = MISSING
    metrics: dict[str, Component] = field(default_factory=dict)
    resamples: int = number(100, 1_000_000, "bootstrap resamples over users")
    seed: int = random_seed()


SHARDED = "fsdp2"  # trainer.strategy of trainer=fsdp


@dataclass
class Trainer(Settings):
    """The arguments of `lightning.Trainer` without those in `DECIDED`. A test compares them with its signature."""

    accelerator: str = MISSING
    strategy: str = MISSING
    devices: int = number(1, 10_000, "processes or GPUs on each machine")
    num_nodes: int = number(1, 10_000, "machines", default=1)
    precision: str = MISSING
    fast_dev_run: Any = number(0, 10**9, "batches, or true for one", default=False)
    max_epochs: int | None = number(1, 100_000, "epochs", default=None)
    min_epochs: int | None = number(0, 100_000, "epochs before training may stop", default=None)
    max_steps: int = number(1, 10**12, "steps", also={-1: "no limit"}, default=-1)
    min_steps: int | None = number(0, 10**12, "steps before training may stop", default=None)
    max_time: str | None = None
    limit_train_batches: Any = number(0, 10**9, "batches of an epoch, or a share of them", default=None)
    limit_val_batches: Any = number(0, 10**9, "batches of a validation, or a share of them", default=None)
    limit_test_batches: Any = number(0, 10**9, "batches of test users, or a share of them", default=None)
    limit_predict_batches: Any = number(0, 10**9, "batches, or a share of them", default=None)
    overfit_batches: Any = number(0, 10**9, "batches to overfit", default=0.0)
    val_check_interval: Any = number(0, 10**9, "epochs, or steps if an integer", above=True, default=None)
    check_val_every_n_epoch: int | None = number(1, 100_000, "epochs between validations", default=1)
    num_sanity_val_steps: int | None = number(0, 10**9, "batches", also={-1: "all"}, default=0)
    log_every_n_steps: int = number(1, 10**9, "steps", default=10)
    enable_progress_bar: bool = True
    enable_model_summary: bool = False
    accumulate_grad_batches: int = number(1, 100_000, "batches of one step", default=1)
    gradient_clip_val: float | None = number(0, 10**9, "norm of all gradients", default=None)
    gradient_clip_algorithm: str | None = None
    deterministic: Any = None
    benchmark: bool | None = None
    inference_mode: bool = True
    profiler: str | None = None
    detect_anomaly: bool = False
    sync_batchnorm: bool = False
    enable_autolog_hparams: bool = True
    model_registry: str | None = None


DECIDED = {
    "logger": "loggers are a group of their own: logger=[csv,wandb]",
    "callbacks": "callbacks are a group of their own: +callbacks.NAME._target_=CLASS, ~callbacks.early_stopping",
    "default_root_dir": "the fingerprint of a run names its folder in paths.runs_dir",
    "enable_checkpointing": "an interrupted run resumes from its checkpoints; see training.checkpoint_seconds",
    "use_distributed_sampler": "the data module splits each batch over the processes",
    "reload_dataloaders_every_n_epochs": "the data loader draws new batches in every epoch",
    "barebones": "a run without logs and checkpoints cannot be evaluated; benchmarks/training.py measures bare speed",
    "plugins": "they follow from trainer.precision, trainer.strategy and trainer.devices",
}
"""Arguments of `lightning.Trainer` that cannot be set, and why."""


@dataclass
class Logger(Target):
    """A logger without settings of its own."""


@dataclass
class MLFlowLogger(Logger):
    experiment_name: str = MISSING
    tracking_uri: str | None = None


@dataclass
class WandbLogger(Logger):
    project: str = MISSING
    entity: str | None = None
    group: str | None = None
    offline: bool = MISSING
    tags: list[str] = field(default_factory=list)
    log_data: bool = MISSING
    log_weights: bool = MISSING
    table_rows: int | None = number(1, 10_000_000, "narratives of each feature in the table", default=None)


@dataclass
class Compare(Settings):
    columns: str | None = None
    reference: str | None = None
