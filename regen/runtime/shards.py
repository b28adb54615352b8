"""Where the shards of a stage are worked on: one after the other here, or on a Ray cluster.

A stage hands an engine a function and shards. The function leaves its result on a disk that all machines see, where it
looks before it works, and returns a small record; so a shard that is done is never lost, and never done twice.
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
INTERACTIONS = 16_384  # of a shard that is encoded: what a killed job does again at most


@runtime_checkable
class Engine(Protocol):
    """Works on shards.

    Attributes:
        interactions: About how many make a shard of the stage that encodes.
    """

    interactions: int

    def map(self, work: Callable[[Shard], Record], shards: Sequence[Shard], *, name: str) -> Iterator[Record]:
        """Records of all shards, in any order.

        Args:
            work: Done for each shard; it and its record can be pickled.
            shards: Small descriptions of what to work on.
            name: Of the stage, for the progress bar.
        """


@dataclass
class LocalEngine:
    """One shard after the other, in this process."""

    interactions: int = INTERACTIONS

    def map(self, work: Callable[[Shard], Record], shards: Sequence[Shard], *, name: str) -> Iterator[Record]:
        for shard in tqdm(shards, desc=name, unit="shard"):
            yield work(shard)


HERE = LocalEngine()  # where a stage works unless it is told otherwise


@dataclass
class RayEngine:
    """A map over shards by Ray Data; a shard whose node dies is given to another one.

    Attributes:
        interactions: About how many make a shard of the stage that encodes.
        narratives: How many make a shard of the stage that generates.
        requests: How many to an endpoint make a shard of the stages that narrate and rate.
        asking: How many of those shards ask at one time; rates are shared among them, concurrency is each one's.
        address: Of a running cluster; None starts Ray on this machine, or joins $RAY_ADDRESS.
        cpus: Cores of each shard's process.
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
        """As `Engine.map`; processes on all machines work in the folder of this one, `at_once` at most.

        Raises:
            ModuleNotFoundError: Ray is not installed.
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
    """Ray Data of a cluster; disconnects at the end where this made the connection."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise ModuleNotFoundError("engine=ray needs Ray. Run: pip install 'regen[cluster]'") from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of our own
    try:
        yield ray.data
    finally:
        if ours:
            ray.shutdown()
