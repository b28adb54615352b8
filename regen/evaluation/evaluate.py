"""Stage `evaluate`: writes a run's predictions and scores into its folder."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from regen.config.objects import plain
from regen.config.schema import Evaluation
from regen.data.datamodule import NarrativeDataset
from regen.data.grounding import brand_names, history_texts
from regen.data.prepare import load_tables
from regen.embeddings.content import embed_texts
from regen.evaluation.converse import conversation_statistics, converse_with_test_users
from regen.evaluation.prediction_files import read_predictions
from regen.evaluation.recommend import rank_test_users, ranking_parts
from regen.evaluation.scoring import EXAMPLES, SCORES, Scores, ScoringOptions, score_run_files, write_scores
from regen.runtime.costs import EVALUATED, KEY, PeakMemory, Stopwatch
from regen.runtime.device import described, out_of_memory_named, waiting_for
from regen.runtime.shards import RayEngine
from regen.storage import identity
from regen.storage.artefacts import fingerprint, write_atomically
from regen.training.run import WEIGHTS, LoadedRun, Run

logger = logging.getLogger(__name__)
PREDICTIONS = "predictions.jsonl"
EVALUATION = EVALUATED  # written last; has the settings of the predictions and scores in the same folder
METRICS_VERSION = 2  # increase when a metric is added: older runs are then scored again, without generating again


def evaluation_is_current(run: Run) -> bool:
    """Whether the run has scores for its evaluation settings and the current metrics."""
    if not predictions_are_current(run):
        return False
    record = _record(run)
    if record.get("scores") != _scores_recipe(run):
        return False
    return run.config.task.name == "recommend" or record.get("metrics") == METRICS_VERSION


def predictions_are_current(run: Run) -> bool:
    """Whether the run has the predictions that its evaluation settings ask for, and any scores of them."""
    files = (EVALUATION, PREDICTIONS, EXAMPLES, SCORES)
    if not all((run.folder / name).is_file() for name in files):
        return False
    return bool(_record(run).get("predictions") == _predictions_recipe(run))


def _record(run: Run) -> dict[str, Any]:
    return dict(json.loads((run.folder / EVALUATION).read_text()))


def evaluate_run(
    loaded: LoadedRun, loggers: Sequence[Any] = (), *, reopen: Callable[[Path], LoadedRun], anew: bool = False
) -> None:
    """Generates for the test users and scores; writes predictions, per-example statistics and scores into the folder.

    Args:
        loaded: A finished run.
        loggers: Lightning's loggers.
        reopen: Loads the run from its folder, for the processes of `engine=ray`.
        anew: Generate even if only the scores are out of date.
    """
    run = loaded.run
    keep = not anew and not run.config.task.ranks and predictions_are_current(run)
    record = _record(run) if keep else {}
    (run.folder / EVALUATION).unlink(missing_ok=True)
    if keep:
        predictions = read_predictions(run.folder / PREDICTIONS)
    else:
        predictions, record = _predict(loaded, reopen)
        write_atomically(run.folder / PREDICTIONS, predictions.write_ndjson)
    scores = _score(loaded, predictions)
    scored = {"scores": _scores_recipe(run), "settings": plain(run.config.evaluation), "metrics": METRICS_VERSION}
    text = json.dumps({**record, **scored}, indent=2)
    write_atomically(run.folder / EVALUATION, lambda path: path.write_text(text))
    logger.info("scored: %s", run.folder)
    for run_logger in loggers:
        _log_to(run_logger, loaded, predictions, scores)


def _predict(loaded: LoadedRun, reopen: Callable[[Path], LoadedRun]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Narratives or ranks for the test users, and the record of how they were made and of its costs."""
    run, evaluation = loaded.run, loaded.run.config.evaluation
    watch, memory = Stopwatch(waiting_for(loaded.model.device)), PeakMemory()
    asked = f"evaluation.batch_size={evaluation.batch_size}, {evaluation.generation['max_new_tokens']} new tokens a row"
    task = run.config.task.name
    with out_of_memory_named(asked, "Lower evaluation.batch_size or evaluation.generation.max_new_tokens."):
        if task == "converse":
            predictions = converse_with_test_users(loaded, watch)
        elif task == "recommend":
            predictions = rank_test_users(loaded, watch)
        else:
            predictions = _generate(loaded, watch, reopen)
    costs: dict[str, float | None] = {
        f"{name}_ms": 1000 * seconds / len(predictions) for name, seconds in watch.seconds.items()
    }
    costs["memory_gib"] = memory.gib()
    return predictions, {
        "predictions": _predictions_recipe(run),
        KEY: costs,
        "device": described(loaded.model.device),
        "precision": str(evaluation.precision or "float32"),
    }


def _score(loaded: LoadedRun, predictions: pl.DataFrame) -> Scores:
    """Scores ranks or narratives; narratives are joined with the categories of their items and the histories."""
    run, evaluation, splits = loaded.run, loaded.run.config.evaluation, loaded.data.splits
    if run.config.task.name == "recommend":
        return write_scores(ranking_parts(predictions, loaded), run.folder, options(evaluation))
    tables = load_tables(run.inputs.prepared.path)
    of_item = tables.items.select("item_id", "category")
    known = predictions.join(of_item, on="item_id", how="left", maintain_order="left").with_columns(
        history=pl.Series(history_texts(tables, [example.rows for example in splits["test"].examples]))
    )
    scoring = replace(options(evaluation), brands=brand_names(tables.items))
    about: dict[str, Any] = {name: _narratives(splits[name]) for name in ("train", "validation")}
    about["embed"] = embedder(evaluation)
    if run.config.task.name == "converse":
        return write_scores(conversation_statistics(known, loaded, scoring, **about), run.folder, scoring)
    return score_run_files(known, run.folder, planted=tables.planted, options=scoring, **about)


def _generate(loaded: LoadedRun, watch: Stopwatch, reopen: Callable[[Path], LoadedRun]) -> pl.DataFrame:
    """Writes narratives for the test users: in this process, at a server, or on a cluster."""
    from regen.generation.checks import check_decoding
    from regen.generation.narratives import generate_narratives
    from regen.generation.shards import generate_in_shards
    from regen.generation.vllm_decoder import server_of

    run, test, engine = loaded.run, loaded.data.splits["test"], loaded.run.config.engine.build()
    evaluation, tokenizer = run.config.evaluation, loaded.lm.tokenizer
    settings: dict[str, Any] = {
        "generation": evaluation.generation,
        "batch_size": evaluation.batch_size,
        "seed": evaluation.seed,
        "precision": evaluation.precision,
    }
    check_decoding(evaluation, run.config.engine)
    server = None
    if evaluation.endpoint is not None:
        server = server_of(
            loaded.model, evaluation.endpoint, tokenizer=tokenizer, lm=run.config.lm.name, run=run.folder.name
        )
    if isinstance(engine, RayEngine):
        size, recipe = engine.narratives, _predictions_recipe(run)
        return generate_in_shards(
            run.folder, reopen, examples=len(test), size=size, engine=engine, recipe=recipe, **settings
        )
    return generate_narratives(loaded.model, test, tokenizer=tokenizer, watch=watch, server=server, **settings)


def options(evaluation: Evaluation) -> ScoringOptions:
    """The scoring options of the config group `evaluation`."""
    return ScoringOptions(
        stemmer=evaluation.rouge_stemmer,
        resamples=evaluation.resamples,
        seed=evaluation.seed,
        own={name: metric.build() for name, metric in evaluation.metrics.items()},
    )


def embedder(evaluation: Evaluation) -> Callable[[list[str]], np.ndarray]:
    """The sentence encoder for the similarity."""
    return partial(embed_texts, pretrained=evaluation.similarity)


def _narratives(dataset: NarrativeDataset) -> pl.DataFrame:
    rows = dataset.examples
    return pl.DataFrame({"feature": [row.feature for row in rows], "text": [row.text for row in rows]})


def _predictions_recipe(run: Run) -> str:
    return fingerprint(identity.predictions(plain(run.config.evaluation), run.folder / WEIGHTS))


def _scores_recipe(run: Run) -> str:
    return fingerprint(identity.scores(plain(run.config.evaluation)))


def _log_to(run_logger: Any, loaded: LoadedRun, predictions: pl.DataFrame, scores: Scores) -> None:
    """Logs scores named as in the tables; for W&B also narratives, predictions and weights."""
    from regen.evaluation.wandb_results import final_metrics, record_results

    run_logger.log_metrics(final_metrics(scores))
    if type(run_logger).__name__ == "WandbLogger" and loaded.run.config.task.name == "narrate":
        files = [loaded.run.folder / name for name in (PREDICTIONS, EXAMPLES, SCORES, EVALUATION)]
        record_results(run_logger, loaded, predictions, files)
    run_logger.save()
