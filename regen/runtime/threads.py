"""Limits the threads of a job while other jobs of its grid run on the same machine."""

import os
from collections.abc import Mapping
from typing import Any

VARIABLES = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")  # torch and implicit, polars, tokenizers


def threads_per_job(launcher: Mapping[str, Any], *, cores: int) -> int | None:
    """Number of threads for each job, or None if it needs no limit.

    Args:
        launcher: Hydra's launcher node. Only joblib's has `n_jobs`; Ray and Slurm limit the cores of a job themselves.
        cores: Number of cores of this machine.
    """
    jobs = launcher.get("n_jobs")
    if jobs is None:
        return None
    if jobs < 0:  # joblib counts back: -1 is all cores, -2 all but one
        jobs = max(1, cores + 1 + jobs)
    return max(1, cores // jobs)


def share_cores(launcher: Mapping[str, Any]) -> None:
    """Limits this process's threads. Call it before importing libraries that start threads."""
    threads = threads_per_job(launcher, cores=len(os.sched_getaffinity(0)))
    if threads is None:
        return
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
    import torch

    torch.set_num_threads(threads)
