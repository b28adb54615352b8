"""Writes and scores a few narratives at each validation, so that one can watch them improve during training."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import polars as pl
import torch

from regen.config.schema import SHARDED, Mode, TrainConfig
from regen.data.prepare import load_tables
from regen.evaluation.comparison_table import markdown_table
from regen.evaluation.evaluate import embedder, options
from regen.evaluation.text_metrics import METRICS, OWN, metrics_for, score_examples
from regen.generation.narratives import generate_narratives
from regen.training.run import Run

CALLBACKS = {"checkpoint", "early_stopping", "lr_monitor", "progress", "pruning"}  # others may log further metrics
TABLE = "validation_narratives"


def callbacks_at_validation(run: Run) -> list[L.Callback]:
    """The callback that `training.narratives_at_validation` asks for; none if it is 0."""
    return [NarrativesAtValidation(run)] if run.config.training.narratives_at_validation else []


def check_monitor(config: TrainConfig) -> None:
    """Checks that `training.monitor` is a metric that something logs, and that its direction is right.

    Raises:
        ValueError: If it is not; the message lists the metrics, or gives the right direction.
    """
    training = config.training
    if training.narratives_at_validation and config.trainer.strategy == SHARDED:
        raise ValueError("training.narratives_at_validation needs the whole model; trainer=fsdp shards it.")
    wanted = {"val_loss": Mode.min}  # direction of each metric
    if training.narratives_at_validation:
        wanted |= {f"val_{name}": Mode.max for name, metric in METRICS.items() if metric.higher_is_better}
        wanted |= dict.fromkeys((f"val_{OWN}{name}" for name in config.evaluation.metrics), training.mode)
    if training.monitor not in wanted and set(config.callbacks) <= CALLBACKS:
        hint = "" if training.narratives_at_validation else ". For others set training.narratives_at_validation"
        raise ValueError(f"training.monitor={training.monitor} has to be one of {', '.join(wanted)}{hint}.")
    if (right := wanted.get(training.monitor, training.mode)) != training.mode:
        raise ValueError(f"training.monitor={training.monitor} goes with training.mode={right}, not {training.mode}.")


class NarrativesAtValidation(L.Callback):
    """Logs the metrics of the first validation narratives as `val_<metric>`, and the texts to W&B and TensorBoard."""

    def __init__(self, run: Run) -> None:
        self.count = run.config.training.narratives_at_validation
        self.evaluation = run.config.evaluation
        self.tokenizer = run.config.lm.build().tokenizer
        self.planted = load_tables(run.inputs.prepared.path).planted

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        evaluation, scoring = self.evaluation, options(self.evaluation)
        with torch.random.fork_rng():  # so that training draws the same random numbers as without this callback
            written = generate_narratives(
                module.model,
                trainer.datamodule.splits["validation"].part(0, self.count),
                tokenizer=self.tokenizer,
                generation=evaluation.generation,
                batch_size=evaluation.batch_size,
                seed=evaluation.seed,
            )
        scored = score_examples(
            written, embed=embedder(evaluation), planted=self.planted, stemmer=scoring.stemmer, own=scoring.own
        )
        for name, metric in metrics_for(scored.columns).items():
            value = float(metric.aggregate(scored.select(metric.columns).sum().to_numpy()[0]))
            module.log(f"val_{name}", value, batch_size=len(written))
        if trainer.is_global_zero:
            _send(trainer.loggers, written.select("user_id", "feature", "prediction", "reference"), trainer.global_step)


def _send(loggers: Sequence[Any], texts: pl.DataFrame, step: int) -> None:
    rows = [list(row) for row in texts.rows()]
    for logger in loggers:
        kind = type(logger).__name__
        if kind == "WandbLogger":
            logger.log_table(TABLE, columns=texts.columns, data=rows)
        elif kind == "TensorBoardLogger":
            logger.experiment.add_text(TABLE, "\n".join(markdown_table([texts.columns, *rows])), step)
