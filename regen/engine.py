"""Where the shards of a stage are worked on: one after the other here, or on a Ray cluster.

A stage hands an engine a function and shards. The function leaves its result where the next run finds it, on a disk
that all machines see, and returns a small record; so a shard that is done is never lost, and never done twice.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from tqdm import tqdm

Shard = TypeVar("Shard")
Record = TypeVar("Record")


@runtime_checkable
class Engine(Protocol):
    """Works on shards."""

    def map(self, work: Callable[[Shard], Record], shards: Sequence[Shard], *, name: str) -> Iterator[Record]:
        """Records of all shards, in any order.

        Args:
            work: Done for each shard; it and its record can be pickled.
            shards: Small descriptions of what to work on.
            name: Of the stage, for the progress bar.
        """


class LocalEngine:
    """One shard after the other, in this process."""

    def map(self, work: Callable[[Shard], Record], shards: Sequence[Shard], *, name: str) -> Iterator[Record]:
        for shard in tqdm(shards, desc=name, unit="shard"):
            yield work(shard)
