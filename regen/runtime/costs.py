"""Costs of a run (positions, time, memory): how they are measured, and their records in the run's folder."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

KEY = "costs"  # key of the costs in the records of a run:
RECORDS = TRAINED, EVALUATED = "run.json", "evaluation.json"
CELL = "cell.json"  # in the folder of a multirun's job: the folder of its run, or why there is none

COSTS = {
    "positions": "positions an example",
    "step_ms": "training step, ms",
    "prefill_ms": "prefill of a narrative, ms",
    "generation_ms": "generation of a narrative, ms",
    "memory_gib": "peak memory, GiB",
}


class Stopwatch:
    """Seconds spent in each of several activities.

    Args:
        wait: Called before the clock is read; for a GPU, which works asynchronously, `torch.cuda.synchronize`.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.wait = wait

    @contextmanager
    def timing(self, activity: str) -> Iterator[None]:
        """Adds the time inside the block to an activity."""
        self.wait()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            self.seconds[activity] += time.perf_counter() - started


class PeakMemory:
    """Peak memory since the object was made: of the GPU if there is one, else resident memory of this process."""

    def __init__(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif _CLEAR.exists():
            _CLEAR.write_text("5")  # Linux: resets the peak of resident memory

    def gib(self) -> float | None:
        """The peak in GiB; None if the system does not report it."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30
        if not _STATUS.exists():
            return None
        kilobytes = next(line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kilobytes) / 2**20


_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def read_costs(folder: Path) -> dict[str, float]:
    """Costs from the records in a run's folder; the memory is the highest of them."""
    found: dict[str, float] = {}
    for path in (folder / name for name in RECORDS):
        if path.is_file():
            for name, value in json.loads(path.read_text()).get(KEY, {}).items():
                if value is not None:
                    found[name] = max(value, found.get(name, value)) if name == "memory_gib" else value
    return found


def mean_costs(runs: list[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each cost over the runs that have it."""
    return {name: fmean(run[name] for run in runs if name in run) for name in COSTS if any(name in run for run in runs)}
