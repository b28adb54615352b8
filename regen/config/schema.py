"""The typed schema that stands in front of `conf/`: names and types here, values and reasons in the YAML files.

Every group option of `conf/` merges into its class below, so that a misspelt key or a value of the wrong type is an
error when the config is composed. An option of your own (an adapter, an encoder, a source) needs no schema: put its
YAML beside ours, with `_target_` naming your class.
"""

from dataclasses import FrozenInstanceError, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

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


class Precision(StrEnum):
    int8 = "int8"


@dataclass
class SyntheticSource(Settings):
    _target_: str = MISSING
    vertical: str = MISSING
    users: int = MISSING
    narrated_users: int = MISSING
    items: int = MISSING
    needs: int = MISSING
    purchases: int = MISSING
    need_share: float = MISSING
    seed: int = MISSING


@dataclass
class FolderSource(Settings):
    _target_: str = MISSING
    folder: str = MISSING
    on_bad_row: OnBadRow = OnBadRow.error


@dataclass
class JsonlSource(FolderSource):
    max_rating: float = MISSING


@dataclass
class AmazonSource(Settings):
    _target_: str = MISSING
    folder: str | None = None
    reviews: str = MISSING
    metadata: str = MISSING
    max_history: int = MISSING
    collapse_copies: bool = MISSING


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
    max_rating: float = MISSING
    fields: ReleaseFields = MISSING


@dataclass
class Vertical(Settings):
    name: str = MISSING
    file: str = MISSING


@dataclass
class Split(Settings):
    validation: float = MISSING
    test: float = MISSING
    salt: str = MISSING


@dataclass
class Encoder(Settings):
    name: str = MISSING
    parts: list[Any] = field(default_factory=list)
    dim: int | None = None
    max_tokens: int | None = None


@dataclass
class ALS(Settings):
    _target_: str = MISSING
    factors: int = MISSING
    regularization: float = MISSING
    iterations: int = MISSING
    seed: int = MISSING


@dataclass
class BPR(ALS):
    learning_rate: float = MISSING


@dataclass
class CF(Settings):
    name: str = MISSING
    alpha: float = MISSING
    model: Component = MISSING


@dataclass
class Content(Settings):
    name: str = MISSING
    pretrained: str = MISSING
    batch_size: int = MISSING


@dataclass
class LinearAdapter(Settings):
    _target_: str = MISSING
    name: str = MISSING
    init: Init = MISSING
    ridge: float = MISSING
    lr: float = MISSING


@dataclass
class MLPAdapter(LinearAdapter):
    hidden_dim: int = MISSING
    residual: bool = MISSING


@dataclass
class TransformerAdapter(LinearAdapter):
    hidden_dim: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    max_history: int = MISSING


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
    width: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    seed: int = MISSING


@dataclass
class Tuning(Settings):
    _target_: str = MISSING
    name: str = MISSING
    lr: float = MISSING


@dataclass
class LoRA(Tuning):
    rank: int = MISSING
    alpha: float = MISSING
    dropout: float = MISSING
    target_modules: Any = None


@dataclass
class Feature(Settings):
    prompt: str = MISSING
    withhold_final_review: bool = MISSING
    epochs: int = 1


@dataclass
class Data(Settings):
    max_history: int = MISSING
    max_narrative_tokens: int | None = None


@dataclass
class Training(Settings):
    epochs: int | None = None
    batch_size: int = MISSING
    weight_decay: float = MISSING
    warmup_share: float = MISSING
    gradient_clip: float = MISSING
    validations_per_epoch: int = MISSING
    patience: int = MISSING
    checkpoint_seconds: float = MISSING


@dataclass
class Evaluation(Settings):
    batch_size: int = MISSING
    endpoint: str | None = None
    precision: Precision | None = None
    generation: dict[str, Any] = MISSING
    similarity: str = MISSING
    rouge_stemmer: bool = MISSING
    metrics: dict[str, Component] = field(default_factory=dict)
    resamples: int = MISSING
    seed: int = MISSING


@dataclass
class Trainer(Settings):
    accelerator: str = MISSING
    devices: int = MISSING
    strategy: str = MISSING
    precision: str = MISSING
    num_workers: int = MISSING
    max_steps: int = MISSING
    enable_progress_bar: bool = MISSING


@dataclass
class CSVLogger(Settings):
    _target_: str = MISSING


@dataclass
class TensorBoardLogger(Settings):
    _target_: str = MISSING


@dataclass
class WandbLogger(Settings):
    _target_: str = MISSING
    project: str = MISSING
    entity: str | None = None
    group: str | None = None
    offline: bool = MISSING
    tags: list[str] = field(default_factory=list)
    log_data: bool = MISSING
    log_weights: bool = MISSING
    table_rows: int | None = None


@dataclass
class Paths(Settings):
    data_dir: str = MISSING
    runs_dir: str = MISSING


@dataclass
class LocalEngine(Settings):
    _target_: str = MISSING
    interactions: int = MISSING


@dataclass
class RayEngine(LocalEngine):
    narratives: int = MISSING
    requests: int = MISSING
    asking: int = MISSING
    address: str | None = None
    cpus: float = MISSING
    gpus: float = MISSING


@dataclass
class Narrator(Settings):
    name: str = MISSING


@dataclass
class WritingNarrator(Narrator):
    max_history: int = MISSING
    users: int | None = None


@dataclass
class EndpointPrice(Settings):
    prompt: float | None = None
    completion: float | None = None


@dataclass
class Endpoint(Settings):
    model: str = MISSING
    base_url: str | None = None
    api_key_env: str = MISSING
    temperature: float = MISSING
    top_p: float = MISSING
    max_tokens: int = MISSING
    seed: int | None = None
    timeout: float = MISSING
    concurrency: int = MISSING
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_attempts: int = MISSING
    price: EndpointPrice = MISSING
    ledger: str = MISSING
    text_characters: int = MISSING
    history_characters: int = MISSING


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
    max_cost: float | None = None


@dataclass
class NarrateConfig(NarratedConfig):
    dry_run: bool = False
    engine: Component = MISSING


@dataclass
class RateConfig(NarrateConfig):
    rater: dict[str, Endpoint] = MISSING
    run: str | None = None
    draws: int = MISSING
    users: int | None = None


@dataclass
class SideBySideConfig(Settings):
    a: str = MISSING
    b: str = MISSING
    rater: dict[str, Endpoint] = MISSING
    users: int | None = None
    engine: Component = MISSING
    paths: Paths = MISSING
    max_cost: float | None = None
    force: bool = False


@dataclass
class ReleaseConfig(NarratedConfig):
    split: Split = MISSING
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
    split: Split = MISSING
    engine: Component = MISSING


@dataclass
class TrainConfig(EncodeConfig):
    encoder: Encoder = MISSING
    adapter: AdapterChoice = MISSING
    lm: Component = MISSING
    tuning: TuningChoice = MISSING
    feature: dict[str, Feature] = MISSING
    data: Data = MISSING
    training: Training = MISSING
    evaluation: Evaluation = MISSING
    trainer: Trainer = MISSING
    logger: Component = MISSING
    seed: int = MISSING


@dataclass
class EvaluateConfig(Settings):
    run: str | None = None
    runs: str | None = None
    against: str | None = None
    predictions: str | None = None
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
    host: str = MISSING
    port: int = MISSING
    rows: int = MISSING
    queue: int = MISSING
    timeout: float = MISSING
    max_body_bytes: int = MISSING
    api_key_env: str = MISSING
    dry_run: bool = False


@dataclass
class ReportConfig(Settings):
    runs: str = MISSING
    out: str | None = None
    users: int = MISSING
    seed: int = MISSING
    figures: bool = MISSING


@dataclass
class DemoConfig(Settings):
    runs: str = MISSING
    host: str = MISSING
    port: int = MISSING


def groups_help() -> str:
    """Every group of `conf/` with its values, for `--help`; the schema's own groups are no one's choice."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        groups.setdefault(path.parent.name, []).append(path.stem)
    return "\n".join(f"  {group}: {', '.join(values)}" for group, values in groups.items())


def _the_store(memo: dict[int, Any]) -> ConfigStore:
    return ConfigStore.instance()


def register() -> None:
    """Puts the schema where the YAML files' defaults lists find it: `/schema/<group>/<class>`."""
    OmegaConf.register_new_resolver("groups_help", groups_help, replace=True)
    store = ConfigStore.instance()
    # Hydra copies its config sources, and the store in them, for every group that --help lists: seconds. A copy is
    # not needed, because nothing writes to a source's store and `ConfigStore.load` copies what it returns.
    vars(store)["__deepcopy__"] = _the_store
    groups: dict[str, list[type]] = {
        "root": [
            PrepareConfig,
            NarrateConfig,
            RateConfig,
            SideBySideConfig,
            DashboardConfig,
            ReleaseConfig,
            EncodeConfig,
            TrainConfig,
            EvaluateConfig,
            ReportConfig,
            ServeConfig,
            ExportConfig,
            DemoConfig,
        ],
        "source": [SyntheticSource, FolderSource, JsonlSource, AmazonSource, ReleaseSource],
        "narrator": [Narrator, WritingNarrator, OpenAINarrator],
        "encoder": [Encoder],
        "engine": [LocalEngine, RayEngine],
        "cf": [ALS, BPR],
        "adapter": [LinearAdapter, MLPAdapter, TransformerAdapter],
        "lm": [PackagedLM, PretrainedLM, TinyLM],
        "tuning": [Tuning, LoRA],
        "logger": [CSVLogger, TensorBoardLogger, WandbLogger],
    }
    for group, classes in groups.items():
        for node in classes:
            store.store(group=f"schema/{group}", name=node.__name__, node=node)
