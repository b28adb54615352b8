"""The Lightning loggers that a run's config names."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from regen.training.run import Run

MLFLOW = "mlflow.db"  # in paths.runs_dir if no server is set: mlflow ui --backend-store-uri sqlite:///…


@contextmanager
def experiment_loggers(run: Run) -> Iterator[list[Any]]:
    """Yields the loggers of a run's config, and closes them at the end."""
    with ExitStack() as opened:
        loggers = []
        for node in run.config.logger.values():
            if node.target.endswith("WandbLogger"):
                from regen.training.wandb_records import wandb_logger

                loggers.append(opened.enter_context(wandb_logger(run, node)))
            elif node.target.endswith("MLFlowLogger"):
                loggers.append(_mlflow(run, node))
            else:
                loggers.append(node.build(save_dir=str(run.folder), name="logs"))
        yield loggers


def _mlflow(run: Run, node: Any) -> Any:
    address = (
        node.options["tracking_uri"]
        or os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{run.folder.parent / MLFLOW}"
    )
    return node.build(tracking_uri=address, run_name=run.folder.name)
