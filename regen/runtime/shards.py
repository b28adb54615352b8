"""Engines, which run the shards of a stage: one after the other in this process, or on a Ray cluster.

A stage gives an engine a function and shards. The function writes its result to a disk that all machines share, skips
shards whose result is there, and returns a small record. A finished shard is therefore never lost or repeated.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from tqdm import tqdm

Shard = TypeVar("Shard")
Record = TypeVar("Record")
INTERACTIONS = 16_384  # interactions of a shard: an interrupted job repeats at most these


@runtime_checkable
class Engine(Protocol):
    """Runs a function on shards.

    Attributes:
        interactions: Approximate number of interactions in a shard of the stage `encode`.
    """

    interactions: int

    def map(self, work: Callable[[Shard], Record], shards: Sequence[Shard], *, name: str) -> Iterator[Record]:
        """Yields the records of all shards in any order.

        Args:
            work: Called with each shard; the function and its records can be pickled.
            shards: Small descriptions of the shards.
            name: Name of the stage, for the progress bar.
        """


@dataclass
class LocalEngine:
    """Runs one shard after the other in this process."""

    interactions: int = INTERACTIONS

    def map(self, work: Callable[[Shard], Record], shards: Sequence[Shard], *, name: str) -> Iterator[Record]:
        for shard in tqdm(shards, desc=name, unit="shard"):
            yield work(shard)


HERE = LocalEngine()  # the default engine


@dataclass
class RayEngine:
    """Runs shards with Ray Data, which moves a shard to another node if its node dies.

    Attributes:
        interactions: Approximate number of interactions in a shard of the stage `encode`.
        narratives: Number of narratives in a shard of the generation.
        requests: Number of endpoint requests in a shard of the stages `narrate` and `rate`.
        asking: Number of those shards that send requests at once. They share the rate limits; `concurrency` holds for
            each.
        address: Address of a running cluster; None joins $RAY_ADDRESS or starts Ray on this machine.
        cpus: CPU cores of each shard's process.
        gpus: GPUs of each shard's process.
    """

    interactions: int
    narratives: int
    requests: int
    asking: int
    address: str | None
    cpus: float
    gpus: float

    def map(
        self, work: Callable[[Shard], Record], shards: Sequence[Shard], *, name: str, at_once: int | None = None
    ) -> Iterator[Record]:
        """Implements `Engine.map`, with at most `at_once` processes, all in this process's working directory.

        Raises:
            ModuleNotFoundError: If Ray is not installed.
        """
        if not shards:
            return
        folder = Path.cwd()

        def run(row: dict[str, Any]) -> dict[str, Any]:
            os.chdir(folder)
            return {"record": pickle.dumps(work(shards[row["item"]]))}

        with _connected(self.address) as data:
            rows = data.from_items(list(range(len(shards))), override_num_blocks=len(shards))
            done = rows.map(run, num_cpus=self.cpus, num_gpus=self.gpus, concurrency=at_once).iter_rows()
            for row in tqdm(done, desc=name, unit="shard", total=len(shards)):
                yield pickle.loads(row["record"])


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Yields `ray.data`, connected to a cluster; closes the connection unless it existed before."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise ModuleNotFoundError("engine=ray needs Ray. Run: pip install 'regen[cluster]'") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False  # regen shows its own
    try:
        yield ray.data
    finally:
        if ours:
            ray.shutdown()
