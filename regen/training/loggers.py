"""The Lightning logger that a run's config names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from regen.training.run import Run


@contextmanager
def experiment_logger(run: Run) -> Iterator[Any]:
    """The Lightning logger of the config, closed whatever happens."""
    if "project" not in run.config.logger.options:
        yield run.config.logger.build(save_dir=str(run.folder), name="logs")
        return
    from regen.training.wandb_records import wandb_logger

    with wandb_logger(run) as run_logger:
        yield run_logger
