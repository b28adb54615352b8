"""What a run leaves in W&B: a group per grid, results named as in the tables, narratives, and what came of what.

It works offline: all that is logged stays in the run's folder, and `wandb sync` makes the same groups, tables and
lineage of it later. Reviews stay where they are unless `logger.log_data=true`: of the inputs, W&B gets names, hashes
and recipes. Frozen weights are in no artifact, because a run's weights file holds only what was trained.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from regen.evaluation.controls import shuffled
from regen.evaluation.scoring import EXAMPLES, Scores
from regen.pipeline import instantiate, plain
from regen.storage.artefacts import Artefact
from regen.training.run import RECORD, WEIGHTS, LoadedRun, Run, is_main_process
from regen.training.wandb_names import NARRATIVES, bound_names, metric_name

__all__ = ["final_metrics", "grid_name", "input_artifact", "record_results", "use_inputs", "wandb_logger"]

LONGEST_TAG, LONGEST_NAME = 64, 128  # what W&B takes
_OWN = ("offline", "log_data", "log_weights", "table_rows")  # options that wandb.init does not know
_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password)$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@contextmanager
def wandb_logger(run: Run) -> Iterator[Any]:
    """Lightning's W&B logger of a run, its inputs recorded; closed whatever happens, so that cells do not merge."""
    import wandb

    options = plain(run.cfg.logger)
    offline = options["offline"]
    options = {key: value for key, value in options.items() if key not in _OWN}
    options |= {
        "group": options["group"] or grid_name(),
        "job_type": "train",
        "tags": _tags(run, options["tags"]),
        "mode": "offline" if offline else None,  # Lightning's own `offline` would hold for all later cells too
        "name": run.folder.name,
        "id": run.folder.name.rsplit("-", 1)[1],  # so that a resumed run goes on there too (offline ones ignore that)
        "resume": "allow",
    }
    config = _without_secrets({**plain(run.cfg), "inputs": run.inputs.fingerprints()})
    failed = True
    with _copies_in(run.folder / "wandb" / "data"):
        try:
            run_logger = instantiate({**options, "_partial_": True})(save_dir=str(run.folder), config=config)
            if is_main_process():
                use_inputs(run_logger.experiment, run)
            yield run_logger
            failed = False
        finally:
            wandb.finish(exit_code=int(failed))


def grid_name() -> str | None:
    """The folder of this multirun below `grids/`, which its cells share as their group; None for a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    parts = Path(HydraConfig.get().sweep.dir).parts
    below = parts[parts.index("grids") + 1 :] if "grids" in parts else ()
    return "_".join(below or parts[-1:])


def final_metrics(scores: Scores) -> dict[str, float]:
    """Scores as `test/<feature>/<metric>`, floors and interval bounds beneath; what is not defined is left out."""
    metrics: dict[str, float] = {}
    for feature, by_metric in scores.items():
        for metric, systems in by_metric.items():
            for system, score in systems.items():
                name = metric_name(feature, metric, system)
                named = zip((name, *bound_names(name)), (score[key] for key in ("value", "low", "high")), strict=True)
                metrics |= {key: value for key, value in named if value is not None}
    return metrics


def use_inputs(experiment: Any, run: Run) -> None:
    """Records the artefacts that a run reads as its inputs."""
    for name, artefact in {"prepared": run.inputs.prepared, **run.inputs.encoded}.items():
        kind = "dataset" if name == "prepared" else "embeddings"
        artifact = input_artifact(artefact, kind, upload=run.cfg.logger.log_data)
        if experiment.offline:  # what use_artifact does, which refuses to offline; `wandb sync` carries it out
            experiment._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        elif not experiment.disabled:
            experiment.use_artifact(artifact)


def input_artifact(artefact: Artefact, kind: str, *, upload: bool) -> Any:
    """A W&B artifact of one of ours, its manifest as metadata.

    Args:
        artefact: Prepared data or vectors.
        kind: The artifact's type.
        upload: Whether the files themselves go to W&B; else only where they are and their hashes.
    """
    import wandb

    artifact = wandb.Artifact(artefact.path.name, type=kind, metadata=_without_secrets(artefact.manifest))
    for name in artefact.manifest["files"]:
        path = (artefact.path / name).resolve()
        if upload:
            artifact.add_file(str(path), name=name, policy="immutable")
        else:
            artifact.add_reference(path.as_uri(), name=name)
    return artifact


def record_results(run_logger: Any, loaded: LoadedRun, predictions: pl.DataFrame, files: Sequence[Path]) -> None:
    """Records the table of narratives, the predictions with their scores, and the trained weights.

    Args:
        run_logger: Lightning's W&B logger.
        loaded: The run; its folder holds the scored examples.
        predictions: Of the test split, in its order.
        files: Predictions and scores.
    """
    import wandb

    run, experiment = loaded.run, run_logger.experiment
    table = _narratives(loaded, predictions)
    run_logger.log_table(NARRATIVES, columns=table.columns, data=[list(row) for row in table.rows()])
    lineage = {"run": run.folder.name, "inputs": run.inputs.fingerprints()}
    made = {**lineage, "evaluation": plain(run.cfg.evaluation), "model": _name("model", run)}
    artifact = wandb.Artifact(_name("predictions", run), type="predictions", metadata=_without_secrets(made))
    for path in files:
        artifact.add_file(str(path), name=path.name)  # a copy: other settings of the evaluation replace these files
    experiment.log_artifact(artifact)
    if run.cfg.logger.log_weights:
        made = {**json.loads((run.folder / RECORD).read_text()), **lineage, "config": plain(run.cfg)}
        artifact = wandb.Artifact(_name("model", run), type="model", metadata=_without_secrets(made))
        artifact.add_file(str(run.folder / WEIGHTS), name=WEIGHTS, policy="immutable")
        experiment.log_artifact(artifact)


def _narratives(loaded: LoadedRun, predictions: pl.DataFrame) -> pl.DataFrame:
    """The first predictions of each feature beside reference, shuffled floor and similarity."""
    run = loaded.run
    scored = pl.read_parquet(run.folder / EXAMPLES, glob=False).filter(pl.col("system") == "model")
    similarity = scored["similarity"] if "similarity" in scored.columns else pl.lit(None, dtype=pl.Float64)
    lengths = [len(example.rows) for example in loaded.data.splits["test"].examples]
    numbered = predictions.with_columns(history_length=pl.Series(lengths), similarity=similarity).with_row_index("at")
    several = numbered.filter(pl.col("user_id").n_unique().over("feature") > 1)
    others = shuffled(several, seed=run.cfg.evaluation.seed) if several.height else several
    table = numbered.join(others.select("at", shuffled="prediction"), on="at", how="left", maintain_order="left")
    if (rows := run.cfg.logger.table_rows) is not None:
        table = table.filter(pl.int_range(pl.len()).over("feature") < rows)
    columns = ("user_id", "feature", "item_id", "history_length", "prediction", "reference", "shuffled", "similarity")
    return table.select(columns)


def _tags(run: Run, given: Sequence[str]) -> list[str]:
    names = [f"encoder:{run.cfg.encoder.name}", f"adapter:{run.cfg.adapter.name}"]
    tags = [*given, *names, *(f"feature:{feature}" for feature in run.cfg.feature)]
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags))


def _name(kind: str, run: Run) -> str:
    """An artifact's name: the run's, whose end is its fingerprint, with the characters that W&B takes."""
    name = re.sub(r"[^\w.-]", "_", run.folder.name, flags=re.ASCII)
    return f"{kind}-{name[len(kind) + 1 - LONGEST_NAME :]}"


def _without_secrets(node: Any) -> Any:
    """Plain values without keys and passwords; a setting that names an environment variable stays."""
    if isinstance(node, Mapping):
        kept = {key: value for key, value in node.items() if not (isinstance(value, str) and _SECRET.search(str(key)))}
        return {key: _without_secrets(value) for key, value in kept.items()}
    if isinstance(node, list | tuple):
        return [_without_secrets(value) for value in node]
    return _CREDENTIALS.sub("", node) if isinstance(node, str) else node


@contextmanager
def _copies_in(folder: Path) -> Iterator[None]:
    """Lets W&B keep what it has yet to upload in this folder rather than in the user's home."""
    import wandb.env

    before = os.environ.get(wandb.env.DATA_DIR)
    os.environ.setdefault(wandb.env.DATA_DIR, str(folder.resolve()))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(wandb.env.DATA_DIR, None)
