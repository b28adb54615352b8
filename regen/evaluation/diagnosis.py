"""The diagnosis of a finished run: memorising or reading, as `diagnosis.json` and `diagnosis.md` in its folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from regen.config.objects import plain
from regen.data.prepare import item_rows, load_tables
from regen.data.splits import fitted_interactions
from regen.evaluation import memorisation as memorising
from regen.evaluation import swap as swapping
from regen.evaluation.comparison_blocks import FEW_USERS
from regen.evaluation.evaluate import PREDICTIONS, embedder
from regen.evaluation.memorisation import EXCESS, REFERENCES, Memorisation, memorisation
from regen.evaluation.scoring import EXAMPLES, read_predictions
from regen.evaluation.slices import ATTRIBUTES, example_attributes, slice_scores
from regen.evaluation.swap import OTHER, POSITIONS, GreedyNarrator, sampled, swap_summary, swap_test
from regen.evaluation.text_metrics import KEYS, METRICS, Metric
from regen.storage.artefacts import write_atomically
from regen.training.assembly import dataset_maker
from regen.training.run import LoadedRun

log = logging.getLogger(__name__)
DIAGNOSIS, REPORT = "diagnosis.json", "diagnosis.md"
SWAPPED_EXAMPLES = 500  # narrated three times each
SHOWN = 3
SLICED_METRICS = ("rougeLsum", "similarity", "need_recovery", "trait_recovery")  # in the report; the JSON has all

_READ_COPIES = (
    "Longest shared n-gram: the most words in a row that also stand in some training narrative (case and punctuation "
    "aside). References are texts of test users, which this model did not write: what they share with the training "
    "narratives is formula and chance. Copying is the excess, prediction less reference on the same example. A "
    "positive excess alone may be formula too, because greedy text prefers the commonest wording: whole narratives "
    "copied, and what the longest n-grams below say, tell reciting from it. A model that writes a mean text is near "
    "the training narratives without copying any: read similarity beside n-grams."
)
_READ_SWAP = (
    "One interaction gives way to the final one of another test user and the narrative is generated again, greedily. "
    "*Final*: the latest interaction is swapped; *other*: any one before it. A model that does not read its history "
    "changes nothing. A narrative moves when it comes nearer to what the model wrote for that other user. Narratives "
    "of two users are as similar as the third row says anyway. The `noise` control draws other noise with another "
    "final interaction, so it changes without reading."
)
_READ_LABELS = (
    "Traits are those of the final item: a reading model names the new item's after a swap of the final one, and goes "
    "on naming the old one's after another swap. The need is the user's: it should stay. *Before* says what is named "
    "without any swap."
)
_READ_SLICES = (
    "Buckets are quantiles of the test narratives. Purchases are those of training users. A model that memorises items "
    "falls where they were seldom bought, or unseen; one that reads gains with the history. The floors vary between "
    "buckets too: compare with them."
)


def write_diagnosis(loaded: LoadedRun) -> Path:
    """Diagnoses a finished and evaluated run: copies of training narratives, swaps, slices.

    The swap test generates for at most 500 test narratives, drawn by the evaluation's seed.

    Args:
        loaded: The run, with predictions and scores in its folder.

    Returns:
        The report, `diagnosis.md`; `diagnosis.json` beside it holds all numbers.
    """
    folder, evaluation = loaded.run.folder, loaded.run.config.evaluation
    bootstrap = {"resamples": int(evaluation.resamples), "seed": int(evaluation.seed)}
    training = [example.text for example in loaded.data.splits["train"].examples]
    log.info("diagnosis: copies of %d training narratives", len(training))
    predictions = read_predictions(folder / PREDICTIONS)
    copies = memorisation(predictions, training, embed=embedder(evaluation), **bootstrap)
    slices = _slices(loaded, **bootstrap)
    log.info("diagnosis: swaps")
    swaps = _swaps(loaded)
    swapped = swap_summary(swaps, **bootstrap)
    record = {
        "run": folder.name,
        "settings": plain(evaluation),
        "memorisation": {
            "training_narratives": copies.training_narratives,
            "summary": copies.summary.to_dicts(),
            "longest": _longest(copies, predictions).to_dicts(),
        },
        "swap": {
            "examples": swaps.select(KEYS).unique().height,
            "summary": swapped.to_dicts(),
            "shown": _shown_swaps(swaps).to_dicts(),
        },
        "slices": slices.to_dicts(),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / DIAGNOSIS, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    report = "\n\n".join(
        [
            f"# Memorising or reading: {folder.name}",
            "Brackets: 95 % bootstrap intervals over the test users of this one run; they do not cover training, and a "
            f"claim needs at least three seeds. With fewer than {FEW_USERS} users (\\*) they are too narrow to trust.",
            *_copies_section(copies, predictions),
            *_swap_section(swaps, swapped),
            *_slices_section(slices),
        ]
    )
    write_atomically(folder / REPORT, lambda path: path.write_text(report + "\n", encoding="utf-8"))
    return folder / REPORT


def _slices(loaded: LoadedRun, *, resamples: int, seed: int) -> pl.DataFrame:
    tables = load_tables(loaded.run.inputs.prepared.path)
    trained = fitted_interactions(tables, loaded.run.config.split)
    attributes = example_attributes(loaded.data.splits["test"].examples, tables.interactions, trained)
    scored = pl.read_parquet(loaded.run.folder / EXAMPLES, glob=False)
    return slice_scores(scored, attributes, resamples=resamples, seed=seed)


def _swaps(loaded: LoadedRun) -> pl.DataFrame:
    evaluation = loaded.run.config.evaluation
    tables = load_tables(loaded.run.inputs.prepared.path)
    make = dataset_maker(loaded.run.config, tables, loaded.data.splits["test"].vectors, loaded.lm)  # type: ignore[arg-type]
    narrator = GreedyNarrator(
        loaded.model,
        make,
        loaded.lm.tokenizer,
        generation=evaluation.generation,
        batch_size=evaluation.batch_size,
        precision=evaluation.precision,
    )
    return swap_test(
        sampled(loaded.data.splits["test"].examples, SWAPPED_EXAMPLES, seed=evaluation.seed),
        narrator,
        item_of=item_rows(tables).to_numpy(),
        embed=embedder(evaluation),
        planted=tables.planted,
        seed=evaluation.seed,
    )


def _longest(copies: Memorisation, predictions: pl.DataFrame) -> pl.DataFrame:
    """The narratives that share the longest n-gram, beyond what their reference shares."""
    rows = copies.examples.hstack(predictions.select("prediction"))
    excess = pl.col("longest") - pl.col("reference_longest")
    kept = rows.sort([-excess, -pl.col("longest")], maintain_order=True).head(SHOWN)
    return kept.select(*KEYS, "longest", "reference_longest", "shared", "prediction", "source")


def _shown_swaps(swaps: pl.DataFrame) -> pl.DataFrame:
    """The first few swaps of each position, changed ones first."""
    columns = [*KEYS, "position", "place", "other_user", "before", "after"]
    ordered = swaps.sort("changed", descending=True, maintain_order=True)
    return pl.concat([ordered.filter(pl.col("position") == at).head(SHOWN) for at in POSITIONS]).select(columns)


def _copies_section(copies: Memorisation, predictions: pl.DataFrame) -> Iterable[str]:
    yield f"## Does it copy? {copies.training_narratives:,} distinct training narratives"
    for (feature,), rows in copies.summary.group_by(["feature"], maintain_order=True):
        columns = [memorising.PREDICTIONS, REFERENCES, EXCESS]
        yield f"### {feature}"
        yield _table(rows, "of", columns, memorising.MEASURES)
    yield _READ_COPIES
    yield "The longest beyond their reference:"
    yield "\n".join(
        f"- {row['longest']:.0f} words (reference {row['reference_longest']:.0f}): “{row['shared']}”, in "
        f"{_quoted(row['prediction'])}"
        for row in _longest(copies, predictions).to_dicts()
    )


def _swap_section(swaps: pl.DataFrame, summary: pl.DataFrame) -> Iterable[str]:
    yield "## Does it follow a swap of one item?"
    for (feature,), rows in summary.group_by(["feature"], maintain_order=True):
        present = [position for position in POSITIONS if position in rows["position"].to_list()]
        yield f"### {feature}"
        yield _table(rows, "position", present, swapping.MEASURES)
    yield _READ_SWAP
    if "trait_compared" in swaps.columns:
        yield _READ_LABELS
    if swaps.filter(pl.col("position") == OTHER).is_empty():
        yield "No history has more than one interaction, so no other position could be swapped."
    shown = _shown_swaps(swaps).to_dicts()
    yield "\n".join(f"- {row['position']}: {_quoted(row['before'])} → {_quoted(row['after'])}" for row in shown)


def _slices_section(slices: pl.DataFrame) -> Iterable[str]:
    yield "## Where are the scores earned?"
    kept = slices.filter(pl.col("measure").is_in(SLICED_METRICS))
    for (feature, attribute), rows in kept.group_by(["feature", "attribute"], maintain_order=True):
        yield f"### {feature}: {ATTRIBUTES.get(str(attribute), str(attribute))}"
        measures = [METRICS[name] for name in SLICED_METRICS if name in rows["measure"].to_list()]
        lines = [_line(["Bucket", "Narratives", "System", *(metric.display for metric in measures)])]
        lines.append("|---" * (3 + len(measures)) + "|")
        for (bucket, system), cells in rows.group_by(["bucket", "system"], maintain_order=True):
            found = {row["measure"]: row for row in cells.to_dicts()}
            texts = [_estimate(found.get(metric.name), metric) for metric in measures]
            lines.append(_line([str(bucket), f"{cells['examples'][0]:,}", str(system), *texts]))
        yield "\n".join(lines)
    yield _READ_SLICES


def _table(
    rows: pl.DataFrame,
    across: str,
    columns: Sequence[str],
    metrics: Mapping[str, Metric],
) -> str:
    """A measure a line, with a column for each value of `across`."""
    found = {(row[across], row["measure"]): row for row in rows.to_dicts()}
    lines = [_line(["Measure", *columns]), "|---" * (1 + len(columns)) + "|"]
    for name, metric in metrics.items():
        if any((column, name) in found for column in columns):
            cells = [_estimate(found.get((column, name)), metric) for column in columns]
            lines.append(_line([metric.display, *cells]))
    return "\n".join(lines)


def _estimate(row: Mapping[str, Any] | None, metric: Metric) -> str:
    """Value and interval; a star where they rest on few users."""
    if row is None or row["value"] is None:
        return "—"
    value, *bounds = (
        "—" if row[name] is None else f"{row[name]:.{metric.decimals}f}" for name in ("value", "low", "high")
    )
    return f"{value} [{', '.join(bounds)}]" + (" \\*" if row["users"] < FEW_USERS else "")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _quoted(text: str) -> str:
    return f"“{' '.join(text.split())}”"
