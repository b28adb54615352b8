"""What a cell costs: positions, time and memory, measured where they arise and shown under each table."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

KEY = "costs"  # in the records of a run that keep them:
RECORDS = TRAINED, EVALUATED = "run.json", "evaluation.json"
CELL = "cell.json"  # in the job's folder of a multirun: where its run lies, or why there is none

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
        wait: Called before each reading: `torch.cuda.synchronize` where a GPU works, which is told what to do and not
            waited for otherwise.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.wait = wait

    @contextmanager
    def timing(self, activity: str) -> Iterator[None]:
        """Adds the time inside to an activity."""
        self.wait()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            self.seconds[activity] += time.perf_counter() - started


class PeakMemory:
    """The most memory in use since it was made: of the GPU where there is one, else resident memory of this process."""

    def __init__(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif _CLEAR.exists():
            _CLEAR.write_text("5")  # Linux: starts the peak of resident memory anew

    def gib(self) -> float | None:
        """The peak; None where the system does not tell."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30
        if not _STATUS.exists():
            return None
        kilobytes = next(line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kilobytes) / 2**20


_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def read_costs(folder: Path) -> dict[str, float]:
    """Costs from the records in a run's folder that have any; the peak of memory is the highest of them."""
    found: dict[str, float] = {}
    for path in (folder / name for name in RECORDS):
        if path.is_file():
            for name, value in json.loads(path.read_text()).get(KEY, {}).items():
                if value is not None:
                    found[name] = max(value, found.get(name, value)) if name == "memory_gib" else value
    return found


def mean_costs(runs: list[Mapping[str, float]]) -> dict[str, float]:
    """Mean over runs of what any of them has."""
    return {name: fmean(run[name] for run in runs if name in run) for name in COSTS if any(name in run for run in runs)}
