"""The typed schema that stands in front of `conf/`: names and types here, values and reasons in the YAML files.

Every group option of `conf/` merges into its class below, so that a misspelt key or a value of the wrong type is an
error when the config is composed. An option of your own (an adapter, an encoder, a source) needs no schema: put its
YAML beside ours, with `_target_` naming your class.
"""

from dataclasses import FrozenInstanceError, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from regen.config.ranges import number, random_seed

CONF = Path(__file__).parents[1] / "conf"
"""The folder of YAML files. In a clone it is a link to `conf/`; a wheel holds the files themselves."""


if TYPE_CHECKING:
    from regen.config.objects import AdapterChoice, Component, TuningChoice
else:  # for OmegaConf, a node whose schema its own YAML file names
    AdapterChoice = Component = TuningChoice = Any


class Settings:
    """Base of the schema's classes: an object of them is never changed."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            raise FrozenInstanceError(f"{type(self).__name__}.{name} cannot be set again. Use dataclasses.replace.")
        super().__setattr__(name, value)


class OnBadRow(StrEnum):
    error = "error"
    skip = "skip"


class Init(StrEnum):
    random = "random"
    ridge = "ridge"


class DeviceName(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    int8 = "int8"


@dataclass
class SyntheticSource(Settings):
    _target_: str = MISSING
    vertical: str = MISSING
    users: int = number(1, 100_000_000, "people who buy")
    narrated_users: int = number(1, 100_000_000, "of them with narratives")
    items: int = number(1, 100_000_000, "for sale")
    needs: int = number(1, 1000, "hidden needs")
    purchases: int = number(1, 1000, "of a user, on average")
    need_share: float = number(0, 1, "of purchases that serve the need")
    seed: int = random_seed()


@dataclass
class FolderSource(Settings):
    _target_: str = MISSING
    folder: str = MISSING
    on_bad_row: OnBadRow = OnBadRow.error


@dataclass
class SequencesSource(FolderSource):
    metadata: str = MISSING
    sequences: str = MISSING


@dataclass
class JsonlSource(FolderSource):
    max_rating: float = number(0, 1000, "best rating of the scale", above=True)


@dataclass
class AmazonSource(Settings):
    _target_: str = MISSING
    folder: str | None = None
    reviews: str = MISSING
    metadata: str = MISSING
    max_history: int = number(1, 100_000, "latest interactions of a user that stay")
    collapse_copies: bool = MISSING
    core: int | None = number(2, 1000, "items a user has at least, and users an item", default=None)
    since: str | None = None
    until: str | None = None


@dataclass
class ReleaseFields(Settings):
    user_id: str = MISSING
    history: str = MISSING
    item_id: str = MISSING
    title: str = MISSING
    description: str | None = None
    category: str | None = None
    price: str | None = None
    brand: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    review_title: str | None = None
    review_text: str | None = None
    narratives: dict[str, str | None] = MISSING


@dataclass
class ReleaseSource(Settings):
    _target_: str = MISSING
    path: str = MISSING
    on_bad_row: OnBadRow = OnBadRow.error
    max_rating: float = number(0, 1000, "best rating of the scale", above=True)
    fields: ReleaseFields = MISSING


@dataclass
class Vertical(Settings):
    name: str = MISSING
    file: str | None = None
    file_2023: str | None = None


@dataclass
class Split(Settings):
    name: str = MISSING


@dataclass
class UsersSplit(Split):
    validation: float = number(0, 1, "share of the users", above=True)
    test: float = number(0, 1, "share of the users", above=True)
    salt: str = MISSING


@dataclass
class TimeSplit(Split):
    validation: float = number(0, 1, "share of the narratives", above=True)
    test: float = number(0, 1, "share of the narratives", above=True)
    validation_from: str | None = None
    test_from: str | None = None


@dataclass
class FileSplit(Split):
    folder: str = MISSING

    @property
    def lists(self) -> dict[str, Path]:
        """The file of each split; that of the training users only where it is there."""
        names = ("train", "validation", "test") if self.lists_training_users else ("validation", "test")
        return {name: Path(self.folder, f"{name}.txt") for name in names}

    @property
    def lists_training_users(self) -> bool:
        """Whether there is a list of training users; without it all others train."""
        return Path(self.folder, "train.txt").is_file()


@dataclass
class Encoder(Settings):
    name: str = MISSING
    parts: list[Any] = field(default_factory=list)
    dim: int | None = number(1, 65_536, "width of a control's vectors", default=None)
    max_tokens: int | None = number(1, 1_000_000, "tokens of a history in words", default=None)


@dataclass
class ALS(Settings):
    _target_: str = MISSING
    factors: int = number(1, 65_536, "width of the CF vectors")
    regularization: float = number(0, 1_000_000, "penalty of large factors")
    iterations: int = number(1, 100_000, "passes over the interactions")
    seed: int = random_seed()


@dataclass
class BPR(ALS):
    learning_rate: float = number(0, 10, "of the factors", above=True)


@dataclass
class CF(Settings):
    name: str = MISSING
    alpha: float = number(0, 1_000_000, "confidence that the best rating adds")
    model: Component = MISSING


@dataclass
class Content(Settings):
    name: str = MISSING
    pretrained: str = MISSING
    batch_size: int = number(1, 65_536, "texts encoded at one time")


@dataclass
class LinearAdapter(Settings):
    _target_: str = MISSING
    name: str = MISSING
    init: Init = MISSING
    ridge: float = number(0, 1_000_000, "penalty of the start, in mean variances of the inputs", above=True)
    lr: float = number(0, 10, "peak learning rate", above=True)


@dataclass
class MLPAdapter(LinearAdapter):
    hidden_dim: int = number(1, 1_000_000, "width of the hidden layer")
    residual: bool = MISSING


@dataclass
class TransformerAdapter(LinearAdapter):
    hidden_dim: int = number(1, 1_000_000, "width of the encoder")
    layers: int = number(1, 1000, "of the encoder")
    heads: int = number(1, 1000, "of its attention")
    max_history: int = number(1, 100_000, "latest interactions")


@dataclass
class PackagedLM(Settings):
    _target_: str = MISSING
    name: str = MISSING
    package: str = MISSING


@dataclass
class PretrainedLM(Settings):
    _target_: str = MISSING
    name: str = MISSING
    pretrained: str = MISSING
    revision: str | None = None


@dataclass
class TinyLM(Settings):
    _target_: str = MISSING
    name: str = MISSING
    width: int = number(1, 65_536, "of the hidden state")
    layers: int = number(1, 1000, "decoder layers")
    heads: int = number(1, 1000, "of attention")
    seed: int = random_seed()


@dataclass
class Tuning(Settings):
    _target_: str = MISSING
    name: str = MISSING
    lr: float = number(0, 10, "peak learning rate")


@dataclass
class LoRA(Tuning):
    rank: int = number(1, 65_536, "of the updates")
    alpha: float = number(0, 1_000_000, "scale of the updates, divided by the rank", above=True)
    dropout: float = number(0, 0.99, "share of the inputs")
    target_modules: Any = None


@dataclass
class Feature(Settings):
    prompt: str = MISSING
    withhold_final_review: bool = MISSING
    epochs: int = number(1, 100_000, "passes, where trainer.max_epochs is null", default=1)


class TaskName(StrEnum):
    narrate = "narrate"
    recommend = "recommend"
    converse = "converse"


@dataclass
class Task(Settings):
    name: TaskName = TaskName.narrate
    exclude_bought: bool = True
    train_users: int | None = number(1, 1_000_000_000, "users that the LM is trained on", default=None)
    decay: float | None = number(0, 1, "weight of a purchase against the one after it", above=True, default=None)
    ridge: float | None = number(
        0, 1_000_000, "penalty of the closed form, in mean variances", above=True, default=None
    )
    item_ridge: float = number(0, 1_000_000, "the same over items", above=True, default=0.003)
    folds: int = number(2, 1000, "parts of the training users", default=5)
    narrative_weight: float = number(0, 1, "share of the narrative in the loss of task=converse", default=0.5)

    @property
    def ranks(self) -> bool:
        """Whether items are ranked."""
        return self.name != TaskName.narrate


@dataclass
class Data(Settings):
    max_history: int = number(1, 100_000, "latest interactions of a history")
    max_narrative_tokens: int | None = number(1, 1_000_000, "tokens of a narrative that are learned", default=None)
    critiques: bool = False
    shared_category: float = number(0, 1, "share of the category path that a critique asks for", default=0.0)


class Mode(StrEnum):
    min = "min"
    max = "max"


@dataclass
class Training(Settings):
    batch_size: int = number(1, 65_536, "examples of one step, over all processes")
    monitor: str = MISSING
    mode: Mode = MISSING
    narratives_at_validation: int = number(0, 100_000, "narratives written at each validation")
    checkpoint_seconds: float = number(0, 86_400, "seconds between checkpoints to go on from")
    gradient_checkpointing: bool = MISSING
    num_workers: int | None = number(0, 1000, "processes that form batches", default=None)


@dataclass
class Optimizer(Settings):
    _target_: str = MISSING
    weight_decay: float = number(0, 10, "of every step, times the rate")


@dataclass
class AdamW(Optimizer):
    betas: list[float] = MISSING
    eps: float = number(0, 1, "added to the denominator", above=True)


@dataclass
class ScheduleFree(AdamW):
    warmup_steps: int = number(0, 10**9, "steps in which the rates rise")


@dataclass
class Schedule(Settings):
    _target_: str = MISSING
    warmup_share: float = number(0, 0.99, "share of the steps in which the rates rise")


@dataclass
class EarlyStopping(Settings):
    _target_: str = MISSING
    monitor: str = MISSING
    mode: str = MISSING
    patience: int = number(1, 10**9, "validations without a better value before training stops")
    min_delta: float = number(0, 10**9, "by which a value has to be better")
    check_on_train_epoch_end: bool = MISSING


@dataclass
class Checkpoint(Settings):
    _target_: str = MISSING
    monitor: str = MISSING
    mode: str = MISSING
    filename: str = MISSING
    save_top_k: int = number(0, 1, "1 for the best weights, 0 for the last ones")
    enable_version_counter: bool = MISSING


@dataclass
class ProgressBar(Settings):
    _target_: str = MISSING
    refresh_rate: int = number(0, 10**9, "steps between two updates; 0 for no bar")


@dataclass
class Evaluation(Settings):
    batch_size: int = number(1, 65_536, "rows decoded at one time")
    endpoint: str | None = None
    precision: Precision | None = None
    generation: dict[str, Any] = MISSING
    similarity: str = MISSING
    rouge_stemmer: bool = MISSING
    metrics: dict[str, Component] = field(default_factory=dict)
    resamples: int = number(100, 1_000_000, "of the bootstrap over users")
    seed: int = random_seed()


SHARDED = "fsdp2"  # what trainer.strategy calls an LM in parts (trainer=fsdp)


@dataclass
class Trainer(Settings):
    """Arguments of `lightning.Trainer`, with its defaults where no YAML file gives another.

    Those in `DECIDED` are not here. A test holds this class against the signature.
    """

    accelerator: str = MISSING
    strategy: str = MISSING
    devices: int = number(1, 10_000, "processes or GPUs on each machine")
    num_nodes: int = number(1, 10_000, "machines", default=1)
    precision: str = MISSING
    fast_dev_run: Any = number(0, 10**9, "batches, or true for one", default=False)
    max_epochs: int | None = number(1, 100_000, "passes over the narratives", default=None)
    min_epochs: int | None = number(0, 100_000, "passes before training may stop", default=None)
    max_steps: int = number(1, 10**12, "steps", also={-1: "no limit"}, default=-1)
    min_steps: int | None = number(0, 10**12, "steps before training may stop", default=None)
    max_time: str | None = None
    limit_train_batches: Any = number(0, 10**9, "batches of an epoch, or a share of them", default=None)
    limit_val_batches: Any = number(0, 10**9, "batches of a validation, or a share of them", default=None)
    limit_test_batches: Any = number(0, 10**9, "batches of test users, or a share of them", default=None)
    limit_predict_batches: Any = number(0, 10**9, "batches, or a share of them", default=None)
    overfit_batches: Any = number(0, 10**9, "batches that are trained on again and again", default=0.0)
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
    "default_root_dir": "a run lies where its fingerprint says, below paths.runs_dir",
    "enable_checkpointing": "a killed run goes on from its checkpoints; training.checkpoint_seconds says how often",
    "use_distributed_sampler": "each process takes its share of every batch",
    "reload_dataloaders_every_n_epochs": "the loader draws new batches in every epoch",
    "barebones": "a run without logs and checkpoints cannot be evaluated; see benchmarks/training.py for bare speed",
    "plugins": "precision and processes follow from trainer.precision, trainer.strategy and trainer.devices",
}
"""Arguments of `lightning.Trainer` that cannot be set, and why."""


@dataclass
class Logger(Settings):
    _target_: str = MISSING


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
    table_rows: int | None = number(1, 10_000_000, "narratives of a feature in the table", default=None)


@dataclass
class Compare(Settings):
    columns: str | None = None
    reference: str | None = None


@dataclass
class Paths(Settings):
    data_dir: str = MISSING
    runs_dir: str = MISSING


@dataclass
class LocalEngine(Settings):
    _target_: str = MISSING
    interactions: int = number(1, 1_000_000_000, "of a shard that is encoded")


@dataclass
class RayEngine(LocalEngine):
    narratives: int = number(1, 1_000_000_000, "of a shard that is generated")
    requests: int = number(1, 1_000_000_000, "of a shard of narrate and rate")
    asking: int = number(1, 10_000, "shards that ask at one time")
    address: str | None = None
    cpus: float = number(1, 100_000, "cores of a shard")
    gpus: float = number(0, 1000, "GPUs of a shard")


@dataclass
class Narrator(Settings):
    name: str = MISSING


@dataclass
class WritingNarrator(Narrator):
    max_history: int = number(1, 100_000, "latest purchases of a user")
    users: int | None = number(1, 1_000_000_000, "users to write about", default=None)


@dataclass
class EndpointPrice(Settings):
    prompt: float | None = number(0, 1_000_000, "dollars for a million tokens", default=None)
    completion: float | None = number(0, 1_000_000, "dollars for a million tokens", default=None)


@dataclass
class Endpoint(Settings):
    model: str = MISSING
    base_url: str | None = None
    api_key_env: str = MISSING
    temperature: float = number(0, 100, "of sampling")
    top_p: float = number(0, 1, "probability that sampling keeps", above=True)
    max_tokens: int = number(1, 1_000_000, "tokens of an answer")
    seed: int | None = number(0, 2**31 - 1, "of sampling", default=None)
    timeout: float = number(0, 86_400, "seconds for an answer", above=True)
    concurrency: int = number(1, 10_000, "requests under way")
    requests_per_minute: float | None = number(0, 10_000_000, "requests", above=True, default=None)
    tokens_per_minute: float | None = number(0, 1_000_000_000_000, "tokens", above=True, default=None)
    max_attempts: int = number(1, 1000, "attempts at a request")
    price: EndpointPrice = MISSING
    ledger: str = MISSING
    text_characters: int = number(1, 100_000_000, "characters of a title, description or review")
    history_characters: int = number(1, 1_000_000_000, "characters of a history in a request")


@dataclass
class OpenAINarrator(Endpoint, WritingNarrator):
    pass


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
    draws: int = number(1, 1000, "answers to each question")
    users: int | None = number(1, 1_000_000_000, "users whose narratives are rated", default=None)


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
    trials: int | None = number(1, 100_000, "of a search, in all", default=None)
    seed: int = random_seed("of start, batches and controls")


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
    diagnose: bool = False
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
    rows: int = number(1, 65_536, "narratives written at one time")
    queue: int = number(0, 1_000_000, "narratives that wait")
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
