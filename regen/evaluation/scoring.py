"""Scores of one run, or of another system's file: per-example statistics, intervals and floors, written as files."""

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
from regen.evaluation.prediction_files import read_predictions
from regen.evaluation.similarity import Embed
from regen.evaluation.statistics import Bootstrap, Estimate
from regen.evaluation.text_metrics import METRICS, OwnMetric, check_predictions, metrics_for, score_examples
from regen.storage.artefacts import write_atomically

__all__ = [
    "EXAMPLES",
    "SCORES",
    "ScoringOptions",
    "read_predictions",
    "score_predictions_file",
    "score_run_files",
    "scores_to_text",
]

log = logging.getLogger(__name__)

EXAMPLES, SCORES = "examples.parquet", "scores.json"
REST = "model_rest"  # the model on the rows that the constant of a foreign file is scored on
_PICK_SHARE = 0.1
_PICK_SAMPLE = 300

Scores = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""feature -> metric -> system -> value, low, high, users and, where there is one, note."""


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How to score.

    Attributes:
        stemmer: Porter-stem words for ROUGE.
        resamples: bootstrap resamples of users.
        seed: of the bootstrap, the shuffled floor and the sample for the constant floor.
        own: metrics of the user's own, by name.
        brands: of the catalogue, which count as names wherever they stand in a text.
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
    options: ScoringOptions | None = None,
) -> Scores:
    """Scores a run's predictions and its floors, and writes `examples.parquet` and `scores.json` into its folder.

    Args:
        predictions: columns `user_id, feature, item_id` (nullable), `prediction, reference`; the test users'. With
            `category` and `history` there are more metrics, see `score_examples`.
        folder: the run folder.
        train: training narratives, columns `feature, text`: candidates of the constant floor.
        validation: validation narratives, the same columns: the constant is picked on them.
        embed: sentence embeddings for the similarity; None leaves that metric out.
        planted: truth of a `synthetic` world, None for other sources.
        options: stemmer, resamples and seed.

    Returns:
        What `scores.json` holds: feature, metric, system (`model`, `shuffled`, `constant`), then value, low, high and
        users.

    Raises:
        ValueError: when a text, column or split is missing; the message says which.
    """
    options = options or ScoringOptions()
    systems = with_floors(predictions, train=train, validation=validation, options=options)
    return _score_and_write(systems, folder, embed=embed, planted=planted, options=options)


def with_floors(
    predictions: pl.DataFrame, *, train: pl.DataFrame, validation: pl.DataFrame, options: ScoringOptions
) -> dict[str, pl.DataFrame]:
    """A run's predictions and those of its floors, by system; arguments as for `score_run_files`."""
    check_predictions(predictions)
    systems = {"model": predictions}
    systems |= _shuffled_where_possible(predictions, options)
    systems["constant"] = constant(train, validation, predictions, stemmer=options.stemmer, seed=options.seed)
    return systems


def score_predictions_file(
    path: Path, folder: Path, *, embed: Embed | None, options: ScoringOptions | None = None
) -> Scores:
    """Scores what another system wrote, with the floors that its own file allows.

    There are no training narratives, so the constant is picked from, and on, the references of the first tenth of the
    users, and scored on the others. `model_rest` is the system on those same others: compare the constant with that.

    Args:
        path: a file as `read_predictions` takes it.
        folder: where `examples.parquet` and `scores.json` go; made if absent.
        embed: sentence embeddings for the similarity; None leaves that metric out.
        options: stemmer, resamples and seed.
    """
    options = options or ScoringOptions()
    predictions = read_predictions(path)
    check_predictions(predictions)
    systems = {"model": predictions}
    systems |= _shuffled_where_possible(predictions, options)
    notes = {}
    for feature, rows in predictions.group_by("feature", maintain_order=True):
        users = rows["user_id"].unique(maintain_order=True)
        if len(users) < 2:
            log.warning("%s: feature %s has one user: no constant floor, which needs two.", path, feature[0])
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
        systems = _appended(systems, {REST: rest, "constant": rest.with_columns(prediction=pl.lit(best))})
        notes[str(feature[0])] = (
            f"over {rest.height:,} of {rows.height:,} rows: the constant was picked on the references of the first "
            f"{picked.height:,}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return _score_and_write(systems, folder, embed=embed, planted=None, options=options, notes=notes)


def scores_to_text(scores: Scores) -> str:
    """One run's scores for the terminal: a block per feature, metrics by rows, systems by columns."""
    lines = []
    for feature, by_metric in scores.items():
        systems = list(dict.fromkeys(system for by_system in by_metric.values() for system in by_system))
        lines += [feature, f"  {'':<20}" + "".join(f"{system:>26}" for system in systems)]
        for metric, by_system in by_metric.items():
            known = METRICS.get(metric)
            cells = [_score_text(by_system.get(system), known.decimals if known else 3) for system in systems]
            lines.append(f"  {known.display if known else metric:<20}" + "".join(f"{cell:>26}" for cell in cells))
        notes = {score["note"]: system for by in by_metric.values() for system, score in by.items() if "note" in score}
        lines += [f"  {system}: {note}" for note, system in notes.items()] + [""]
    return "\n".join(lines)


def _score_text(score: dict[str, Any] | None, decimals: int) -> str:
    if score is None or score["value"] is None:
        return "—"
    bounds = (score["low"], score["high"])
    shown = "—" if None in bounds else ", ".join(f"{bound:.{decimals}f}" for bound in bounds)
    return f"{score['value']:.{decimals}f} [{shown}]"


def _shuffled_where_possible(predictions: pl.DataFrame, options: ScoringOptions) -> dict[str, pl.DataFrame]:
    """The shuffled floor over the features that have at least two users; warns of the others."""
    users = pl.col("user_id").n_unique().over("feature")
    for feature in sorted(predictions.filter(users < 2)["feature"].unique()):
        log.warning("Feature %s has one test user: no shuffled floor, which needs at least two.", feature)
    enough = predictions.filter(users >= 2)
    return {} if enough.is_empty() else {"shuffled": shuffled(enough, seed=options.seed)}


def _appended(systems: dict[str, pl.DataFrame], more: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Adds the rows of each system in `more` to those it has already."""
    return systems | {
        name: pl.concat([systems[name], rows] if name in systems else [rows]) for name, rows in more.items()
    }


def _score_and_write(
    systems: dict[str, pl.DataFrame],
    folder: Path,
    *,
    embed: Embed | None,
    planted: pl.DataFrame | None,
    options: ScoringOptions,
    notes: dict[str, str] | None = None,
) -> Scores:
    """Statistics of every system's rows, estimates per feature, and both files."""
    return write_scores(statistics_of(systems, embed=embed, planted=planted, options=options), folder, options, notes)


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
    """Rows of one feature without the statistics that belong to other features."""
    return examples.select(column for column in examples.columns if examples[column].null_count() < len(examples))


def write_scores(
    examples: pl.DataFrame, folder: Path, options: ScoringOptions, notes: dict[str, str] | None = None
) -> Scores:
    """Writes statistics and their estimates into a folder; arguments as for `estimates`."""
    scores = estimates(examples, options, notes or {})
    write_atomically(folder / EXAMPLES, lambda path: examples.write_parquet(path))
    text = json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / SCORES, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return scores


def _embedded_once(embed: Embed, systems: dict[str, pl.DataFrame]) -> Embed:
    """A look-up of the embeddings of all texts of all systems: they share references, and the model's predictions."""
    texts = sorted({text for rows in systems.values() for name in ("prediction", "reference") for text in rows[name]})
    row = {text: index for index, text in enumerate(texts)}
    vectors = embed(texts)
    return lambda wanted: vectors[[row[text] for text in wanted]]


def estimates(examples: pl.DataFrame, options: ScoringOptions, notes: dict[str, str]) -> Scores:
    """Every metric of every system and feature, with intervals over that system's users.

    Args:
        examples: columns `system, user_id, feature` and the statistics.
        options: resamples and seed.
        notes: per feature what to add to `model_rest` and `constant`.
    """
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
    """An estimate as JSON values: null where it is not defined."""
    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    record: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in values.items()}
    record["users"] = estimate.users
    return record if estimate.note is None else record | {"note": estimate.note}
