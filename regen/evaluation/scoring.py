"""Scores one run or another system's file: writes per-example statistics, intervals and floors."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from regen.evaluation.controls import best_constant, constant, shuffled
from regen.evaluation.similarity import Embed
from regen.evaluation.statistics import Bootstrap, Estimate
from regen.evaluation.text_metrics import OwnMetric, check_predictions, display_of, metrics_for, score_examples
from regen.storage.artefacts import write_atomically

log = logging.getLogger(__name__)

EXAMPLES, SCORES = "examples.parquet", "scores.json"
REST = "model_rest"  # the model on the rows that the constant of another system's file is scored on
_PICK_SHARE = 0.1
_PICK_SAMPLE = 300

Scores = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""feature -> metric -> system -> value, low, high, users and an optional note."""


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Options of the scores.

    Attributes:
        stemmer: Porter-stem words for ROUGE.
        resamples: bootstrap resamples of users.
        seed: seed of the bootstrap, the shuffled floor and the sample for the constant floor.
        own: custom metrics by name.
        brands: brands of the catalogue, which always count as names.
    """

    stemmer: bool = True
    resamples: int = 2000
    seed: int = 0
    own: Mapping[str, OwnMetric] = field(default_factory=dict)
    brands: Collection[str] = ()


def score_run_files(
    predictions: pl.DataFrame,
    folder: Path,
    *,
    train: pl.DataFrame,
    validation: pl.DataFrame,
    embed: Embed | None,
    planted: pl.DataFrame | None = None,
    options: ScoringOptions = ScoringOptions(),
) -> Scores:
    """Scores a run's predictions and its floors, and writes `examples.parquet` and `scores.json` into its folder.

    Args:
        predictions: predictions for the test users, columns as for `score_examples`.
        folder: the run folder.
        train: training narratives, columns `feature, text`: the candidates of the constant floor.
        validation: validation narratives, the same columns: the constant is picked on them.
        embed: sentence embeddings for similarity and identification; None skips these metrics.
        planted: truth of a `synthetic` world, None for other sources.
        options: stemmer, resamples and seed.

    Returns:
        The content of `scores.json`; systems are `model`, `shuffled` and `constant`.

    Raises:
        ValueError: when a text, column or split is missing.
    """
    systems = with_floors(predictions, train=train, validation=validation, options=options)
    return write_scores(statistics_of(systems, embed=embed, planted=planted, options=options), folder, options)


def with_floors(
    predictions: pl.DataFrame, *, train: pl.DataFrame, validation: pl.DataFrame, options: ScoringOptions
) -> dict[str, pl.DataFrame]:
    """The predictions of a run and its floors, by system; arguments as for `score_run_files`."""
    systems = _with_shuffled(predictions, options)
    systems["constant"] = constant(train, validation, predictions, stemmer=options.stemmer, seed=options.seed)
    return systems


def score_predictions(
    predictions: pl.DataFrame, folder: Path, *, embed: Embed | None, options: ScoringOptions = ScoringOptions()
) -> Scores:
    """Scores another system's predictions, with the floors that its file allows.

    Such a file has no training narratives. So the constant is picked among the references of the first tenth of the
    users and scored on the other users. Compare it with `model_rest`, the system's scores on these other users.

    Args:
        predictions: from `read_predictions` or `regen.evaluation.beside_runs`.
        folder: folder for `examples.parquet` and `scores.json`; created if absent.
        embed: sentence embeddings for similarity and identification; None skips these metrics.
        options: stemmer, resamples and seed.
    """
    systems = _with_shuffled(predictions, options)
    rests, constants, notes = [], [], {}
    for feature, rows in predictions.group_by("feature", maintain_order=True):
        users = rows["user_id"].unique(maintain_order=True)
        if len(users) < 2:
            log.warning("Feature %s has one user; the constant floor needs two.", feature[0])
            continue
        pickers = users.head(max(1, int(_PICK_SHARE * len(users))))
        picked, rest = (rows.filter(pl.col("user_id").is_in(pickers.to_list()) == chosen) for chosen in (True, False))
        references = picked["reference"].to_list()
        best = best_constant(
            references,
            references,
            stemmer=options.stemmer,
            seed=options.seed,
            sample=_PICK_SAMPLE,
            name=str(feature[0]),
        )
        rests.append(rest)
        constants.append(rest.with_columns(prediction=pl.lit(best)))
        notes[str(feature[0])] = (
            f"over {rest.height:,} of {rows.height:,} rows: the constant was picked on the references of the first "
            f"{picked.height:,}"
        )
    if rests:
        systems |= {REST: pl.concat(rests), "constant": pl.concat(constants)}
    folder.mkdir(parents=True, exist_ok=True)
    return write_scores(statistics_of(systems, embed=embed, planted=None, options=options), folder, options, notes)


def scores_to_text(scores: Scores) -> str:
    """One run's scores for the terminal: a block per feature, a row per metric, a column per system."""
    lines = []
    width = max((len(display_of(metric)[0]) for by_metric in scores.values() for metric in by_metric), default=0)
    for feature, by_metric in scores.items():
        systems = list(dict.fromkeys(system for by_system in by_metric.values() for system in by_system))
        users = max(score["users"] for by_system in by_metric.values() for score in by_system.values())
        lines += [f"{feature}, {users:,} users", f"  {'':<{width}}" + "".join(f"{system:>26}" for system in systems)]
        for metric, by_system in by_metric.items():
            display, decimals = display_of(metric)
            cells = [_score_text(by_system.get(system), decimals) for system in systems]
            lines.append(f"  {display:<{width}}" + "".join(f"{cell:>26}" for cell in cells))
        notes = {score["note"]: system for by in by_metric.values() for system, score in by.items() if "note" in score}
        lines += [f"  {system}: {note}" for note, system in notes.items()] + [""]
    return "\n".join(lines)


def _score_text(score: dict[str, Any] | None, decimals: int) -> str:
    if score is None or score["value"] is None:
        return "—"
    bounds = (score["low"], score["high"])
    shown = "—" if None in bounds else ", ".join(f"{bound:.{decimals}f}" for bound in bounds)
    return f"{score['value']:.{decimals}f} [{shown}]"


def _with_shuffled(predictions: pl.DataFrame, options: ScoringOptions) -> dict[str, pl.DataFrame]:
    """Checked predictions and their shuffled floor, by system; features with one user have no floor."""
    check_predictions(predictions)
    users = pl.col("user_id").n_unique().over("feature")
    for feature in sorted(predictions.filter(users < 2)["feature"].unique()):
        log.warning("Feature %s has one test user; the shuffled floor needs at least two.", feature)
    enough = predictions.filter(users >= 2)
    return {"model": predictions} | ({} if enough.is_empty() else {"shuffled": shuffled(enough, seed=options.seed)})


def statistics_of(
    systems: dict[str, pl.DataFrame], *, embed: Embed | None, planted: pl.DataFrame | None, options: ScoringOptions
) -> pl.DataFrame:
    """Statistics of the predictions of several systems; arguments as for `score_run_files`."""
    if embed is not None:
        embed = _embedded_once(embed, systems)
    parts = []
    for system, rows in tqdm(systems.items(), desc="score", unit="system", leave=False, disable=None):
        scored = score_examples(
            rows,
            embed=embed,
            planted=planted,
            stemmer=options.stemmer,
            own=options.own,
            candidates=systems["model"],
            brands=options.brands,
        )
        parts.append(scored.select(pl.lit(system).alias("system"), pl.all()))
    return pl.concat(parts)


def with_own_columns(examples: pl.DataFrame) -> pl.DataFrame:
    """The rows of one feature without the columns that only other features have."""
    return examples.select(column for column in examples.columns if examples[column].null_count() < len(examples))


def write_scores(
    examples: pl.DataFrame, folder: Path, options: ScoringOptions, notes: dict[str, str] | None = None
) -> Scores:
    """Writes statistics and their estimates into a folder.

    Args:
        examples: columns `system, user_id, feature` and the statistics.
        folder: folder for `examples.parquet` and `scores.json`.
        options: resamples and seed.
        notes: remarks on `model_rest` and `constant`, by feature.
    """
    scores = _estimates(examples, options, notes or {})
    write_atomically(folder / EXAMPLES, lambda path: examples.write_parquet(path))
    text = json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / SCORES, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return scores


def _embedded_once(embed: Embed, systems: dict[str, pl.DataFrame]) -> Embed:
    """Embeds the texts of all systems once, because they share references and predictions."""
    texts = sorted({text for rows in systems.values() for name in ("prediction", "reference") for text in rows[name]})
    row = {text: index for index, text in enumerate(texts)}
    vectors = embed(texts)
    return lambda wanted: vectors[[row[text] for text in wanted]]


def _estimates(examples: pl.DataFrame, options: ScoringOptions, notes: dict[str, str]) -> Scores:
    """Every metric of every system and feature, with intervals over that system's users."""
    scores: Scores = {}
    for (feature, system), every in examples.group_by("feature", "system", maintain_order=True):
        rows = with_own_columns(every)
        metrics = metrics_for(rows.columns)
        bootstrap = Bootstrap(rows["user_id"], resamples=options.resamples, seed=options.seed)
        run = bootstrap.resample(rows)
        for name, metric in metrics.items():
            record = _record(bootstrap.interval(metric, [run]))
            if system in (REST, "constant") and str(feature) in notes:
                record["note"] = notes[str(feature)]
            scores.setdefault(str(feature), {}).setdefault(name, {})[str(system)] = record
    return scores


def _record(estimate: Estimate) -> dict[str, Any]:
    """An estimate as JSON values; null if it is not defined."""
    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    record: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in values.items()}
    record["users"] = estimate.users
    return record if estimate.note is None else record | {"note": estimate.note}
