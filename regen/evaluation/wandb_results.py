"""Logs a run's evaluation to W&B: scores named as in the tables, narratives, predictions and weights."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from regen.config.objects import plain
from regen.evaluation.controls import shuffled
from regen.evaluation.scoring import EXAMPLES, Scores
from regen.training.run import RECORD, WEIGHTS, LoadedRun, Run
from regen.training.wandb_names import NARRATIVES, bound_names, metric_name
from regen.training.wandb_records import without_secrets

LONGEST_NAME = 128  # W&B's limit for the name of an artifact


def final_metrics(scores: Scores) -> dict[str, float]:
    """Scores as `test/<feature>/<metric>`, with floors and interval bounds; undefined values are left out."""
    metrics: dict[str, float] = {}
    for feature, by_metric in scores.items():
        for metric, systems in by_metric.items():
            for system, score in systems.items():
                name = metric_name(feature, metric, system)
                named = zip((name, *bound_names(name)), (score[key] for key in ("value", "low", "high")), strict=True)
                metrics |= {key: value for key, value in named if value is not None}
    return metrics


def record_results(run_logger: Any, loaded: LoadedRun, predictions: pl.DataFrame, files: Sequence[Path]) -> None:
    """Logs the table of narratives, the predictions with their scores, and the trained weights.

    Args:
        run_logger: Lightning's W&B logger.
        loaded: The run; its folder contains the scored examples.
        predictions: Predictions for the test split, in its order.
        files: Files of predictions and scores.
    """
    import wandb

    run, experiment = loaded.run, run_logger.experiment
    options = next(node.options for node in run.config.logger.values() if node.target.endswith("WandbLogger"))
    table = _narratives(loaded, predictions, options["table_rows"])
    run_logger.log_table(NARRATIVES, columns=table.columns, data=[list(row) for row in table.rows()])
    lineage = {"run": run.folder.name, "inputs": run.inputs.fingerprints()}
    made = {**lineage, "evaluation": plain(run.config.evaluation), "model": _name("model", run)}
    artifact = wandb.Artifact(_name("predictions", run), type="predictions", metadata=without_secrets(made))
    for path in files:
        artifact.add_file(str(path), name=path.name)  # copied, because another evaluation replaces these files
    experiment.log_artifact(artifact)
    if options["log_weights"]:
        made = {**json.loads((run.folder / RECORD).read_text()), **lineage, "config": plain(run.config)}
        artifact = wandb.Artifact(_name("model", run), type="model", metadata=without_secrets(made))
        artifact.add_file(str(run.folder / WEIGHTS), name=WEIGHTS, policy="immutable")
        experiment.log_artifact(artifact)


def _narratives(loaded: LoadedRun, predictions: pl.DataFrame, rows: int | None) -> pl.DataFrame:
    """The first predictions of each feature with reference, shuffled floor and similarity."""
    run = loaded.run
    scored = pl.read_parquet(run.folder / EXAMPLES, glob=False).filter(pl.col("system") == "model")
    similarity = scored["similarity"] if "similarity" in scored.columns else pl.lit(None, dtype=pl.Float64)
    lengths = [len(example.rows) for example in loaded.data.splits["test"].examples]
    numbered = predictions.with_columns(history_length=pl.Series(lengths), similarity=similarity).with_row_index("at")
    several = numbered.filter(pl.col("user_id").n_unique().over("feature") > 1)
    others = shuffled(several, seed=run.config.evaluation.seed) if several.height else several
    table = numbered.join(others.select("at", shuffled="prediction"), on="at", how="left", maintain_order="left")
    if rows is not None:
        table = table.filter(pl.int_range(pl.len()).over("feature") < rows)
    columns = ("user_id", "feature", "item_id", "history_length", "prediction", "reference", "shuffled", "similarity")
    return table.select(columns)


def _name(kind: str, run: Run) -> str:
    """The name of an artifact, from the end of the run's name, which is its fingerprint."""
    name = re.sub(r"[^\w.-]", "_", run.folder.name, flags=re.ASCII)
    return f"{kind}-{name[len(kind) + 1 - LONGEST_NAME :]}"
