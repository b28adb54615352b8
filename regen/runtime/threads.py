"""How many threads a cell of a grid may use while others run beside it."""

import os
from collections.abc import Mapping
from typing import Any

VARIABLES = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")  # torch and implicit, polars, tokenizers


def threads_per_job(launcher: Mapping[str, Any], *, cores: int) -> int | None:
    """The share of one job, None where the launcher leaves the whole machine to it or sees to it itself.

    Args:
        launcher: Hydra's launcher node. Only joblib's has `n_jobs`; Ray and Slurm give each job its own cores.
        cores: Of this machine.
    """
    jobs = launcher.get("n_jobs")
    if jobs is None:
        return None
    if jobs < 0:  # joblib's way of counting: -1 is all cores, -2 all but one
        jobs = max(1, cores + 1 + jobs)
    return max(1, cores // jobs)


def share_cores(launcher: Mapping[str, Any]) -> None:
    """Keeps this process to its share; call it before the libraries that start threads are imported."""
    threads = threads_per_job(launcher, cores=len(os.sched_getaffinity(0)))
    if threads is None:
        return
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
    import torch

    torch.set_num_threads(threads)
