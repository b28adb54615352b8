"""Narratives written and scored while a model trains, so that one sees them get better."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import polars as pl
import torch

from regen.config.schema import SHARDED, Mode, TrainConfig
from regen.data.prepare import load_tables
from regen.evaluation.evaluate import embedder, options
from regen.evaluation.text_metrics import METRICS, OWN, metrics_for, score_examples
from regen.generation.narratives import generate_narratives
from regen.training.run import Run

CALLBACKS = {
    "checkpoint",
    "early_stopping",
    "lr_monitor",
    "progress",
    "pruning",
}  # any other one may log a metric of its own
TABLE = "validation_narratives"


def callbacks_at_validation(run: Run) -> list[L.Callback]:
    """What `training.narratives_at_validation` asks for; nothing where it is 0."""
    config, count = run.config, run.config.training.narratives_at_validation
    if not count:
        return []
    evaluation, tokenizer = config.evaluation, config.lm.build().tokenizer
    planted, scoring = load_tables(run.inputs.prepared.path).planted, options(evaluation)

    def write(module: Any, dataset: Any) -> pl.DataFrame:
        return generate_narratives(
            module.model,
            dataset.part(0, count),
            tokenizer=tokenizer,
            generation=evaluation.generation,
            batch_size=evaluation.batch_size,
            seed=evaluation.seed,
        )

    def score(written: pl.DataFrame) -> pl.DataFrame:
        return score_examples(
            written, embed=embedder(evaluation), planted=planted, stemmer=scoring.stemmer, own=scoring.own
        )

    return [NarrativesAtValidation(write, score)]


def check_monitor(config: TrainConfig) -> None:
    """Refuses a `training.monitor` that nothing logs, or that is to go in the wrong direction.

    Raises:
        ValueError: Names what can be monitored, or the right direction.
    """
    training = config.training
    if training.narratives_at_validation and config.trainer.strategy == SHARDED:
        raise ValueError("training.narratives_at_validation needs the whole model, of which trainer=fsdp has parts.")
    wanted = {"val_loss": Mode.min}  # direction of each metric that has one
    if training.narratives_at_validation:
        wanted |= {f"val_{name}": Mode.max for name, metric in METRICS.items() if metric.higher_is_better}
        wanted |= dict.fromkeys((f"val_{OWN}{name}" for name in config.evaluation.metrics), training.mode)
    if training.monitor not in wanted and set(config.callbacks) <= CALLBACKS:
        hint = "" if training.narratives_at_validation else ". For others set training.narratives_at_validation"
        raise ValueError(f"training.monitor={training.monitor} has to be one of {', '.join(wanted)}{hint}.")
    if (right := wanted.get(training.monitor, training.mode)) != training.mode:
        raise ValueError(f"training.monitor={training.monitor} goes with training.mode={right}, not {training.mode}.")


class NarrativesAtValidation(L.Callback):
    """Logs the metrics of a few narratives of the validation users as `val_<metric>`, and sends the texts on.

    W&B gets a table, TensorBoard a text.

    Args:
        write: Makes the narratives from the module and the validation split, as `generate_narratives` gives them.
        score: Statistics of them, as `score_examples` gives them.
    """

    def __init__(
        self, write: Callable[[Any, Any], pl.DataFrame], score: Callable[[pl.DataFrame], pl.DataFrame]
    ) -> None:
        self.write = write
        self.score = score

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        with torch.random.fork_rng():  # training goes on with the random numbers that it had
            written = self.write(module, trainer.datamodule.splits["validation"])
        scored = self.score(written)
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
            lines = ["| " + " | ".join(" ".join(str(cell).split()) for cell in row) + " |" for row in rows]
            head = ["| " + " | ".join(texts.columns) + " |", "|---" * len(texts.columns) + "|"]
            logger.experiment.add_text(TABLE, "\n".join([*head, *lines]), step)
