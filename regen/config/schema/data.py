"""Schema of the data: sources, splits, narrators and raters, and where their stages run."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from omegaconf import MISSING

from regen.config.ranges import number, random_seed
from regen.config.schema.base import Settings, Target


@dataclass
class Paths(Settings):
    data_dir: str = MISSING
    runs_dir: str = MISSING


class OnBadRow(StrEnum):
    error = "error"
    skip = "skip"


@dataclass
class SyntheticSource(Target):
    vertical: str = MISSING
    users: int = number(1, 100_000_000, "users with purchases")
    narrated_users: int = number(1, 100_000_000, "users with narratives")
    items: int = number(1, 100_000_000, "items of the catalogue")
    needs: int = number(1, 1000, "hidden needs")
    purchases: int = number(1, 1000, "purchases of a user, on average")
    need_share: float = number(0, 1, "share of purchases that serve the user's need")
    seed: int = random_seed()


@dataclass
class FolderSource(Target):
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
class AmazonSource(Target):
    folder: str | None = None
    reviews: str = MISSING
    metadata: str = MISSING
    max_history: int = number(1, 100_000, "latest interactions kept of a user")
    collapse_copies: bool = MISSING
    core: int | None = number(2, 1000, "fewest items of a user, and users of an item", default=None)
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
class ReleaseSource(Target):
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
        """File of each split, without the training users' if there is none."""
        names = ("train", "validation", "test") if self.lists_training_users else ("validation", "test")
        return {name: Path(self.folder, f"{name}.txt") for name in names}

    @property
    def lists_training_users(self) -> bool:
        """Whether there is a list of training users; otherwise all other users train."""
        return Path(self.folder, "train.txt").is_file()


@dataclass
class LocalEngine(Target):
    interactions: int = number(1, 1_000_000_000, "interactions of a shard when encoding")


@dataclass
class RayEngine(LocalEngine):
    narratives: int = number(1, 1_000_000_000, "narratives of a shard when generating")
    requests: int = number(1, 1_000_000_000, "endpoint requests of a shard (narrate and rate)")
    asking: int = number(1, 10_000, "shards that send requests at once")
    address: str | None = None
    cpus: float = number(1, 100_000, "CPU cores of a shard")
    gpus: float = number(0, 1000, "GPUs of a shard")


@dataclass
class Narrator(Settings):
    name: str = MISSING


@dataclass
class WritingNarrator(Narrator):
    max_history: int = number(1, 100_000, "latest purchases of a user")
    users: int | None = number(1, 1_000_000_000, "users to write about", default=None)
    shared_category: float | None = number(0, 1, "part of two category paths", default=None)


@dataclass
class EndpointPrice(Settings):
    prompt: float | None = number(0, 1_000_000, "dollars for a million tokens", default=None)
    completion: float | None = number(0, 1_000_000, "dollars for a million tokens", default=None)


@dataclass
class Endpoint(Settings):
    model: str = MISSING
    base_url: str | None = None
    api_key_env: str = MISSING
    temperature: float = number(0, 100, "sampling temperature")
    top_p: float = number(0, 1, "probability mass kept in sampling", above=True)
    max_tokens: int = number(1, 1_000_000, "tokens of an answer")
    seed: int | None = number(0, 2**31 - 1, "seed of sampling", default=None)
    timeout: float = number(0, 86_400, "seconds to wait for an answer", above=True)
    concurrency: int = number(1, 10_000, "concurrent requests")
    requests_per_minute: float | None = number(0, 10_000_000, "requests a minute", above=True, default=None)
    tokens_per_minute: float | None = number(0, 1_000_000_000_000, "tokens a minute", above=True, default=None)
    max_attempts: int = number(1, 1000, "attempts per request")
    price: EndpointPrice = MISSING
    ledger: str = MISSING
    text_characters: int = number(1, 100_000_000, "characters of a title, description or review")
    history_characters: int = number(1, 1_000_000_000, "characters of a history in a request")


@dataclass
class OpenAINarrator(Endpoint, WritingNarrator):
    pass
