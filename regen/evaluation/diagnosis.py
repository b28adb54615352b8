"""The diagnosis of a finished run (does it memorise or read?): `diagnosis.json` and `diagnosis.md` in its folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from regen.config.objects import plain
from regen.data.prepare import item_rows, load_tables
from regen.data.splits import fitted_interactions
from regen.evaluation import memorisation as memorising
from regen.evaluation import swap as swapping
from regen.evaluation.comparison_blocks import ABSENT, FEW_USERS
from regen.evaluation.comparison_table import markdown_table
from regen.evaluation.controls import sampled
from regen.evaluation.evaluate import PREDICTIONS, embedder
from regen.evaluation.memorisation import EXCESS, REFERENCES, Memorisation, memorisation
from regen.evaluation.prediction_files import read_predictions
from regen.evaluation.scoring import EXAMPLES
from regen.evaluation.slices import ATTRIBUTES, example_attributes, slice_scores
from regen.evaluation.swap import OTHER, POSITIONS, greedy_narrator, swap_summary, swap_test
from regen.evaluation.text_metrics import KEYS, METRICS, Metric
from regen.storage.artefacts import write_atomically
from regen.training.assembly import dataset_maker
from regen.training.run import LoadedRun

log = logging.getLogger(__name__)
DIAGNOSIS, REPORT = "diagnosis.json", "diagnosis.md"
SWAPPED_EXAMPLES = 500  # each is narrated three times
SHOWN = 3
SLICED_METRICS = ("rougeLsum", "similarity", "need_recovery", "trait_recovery")  # in the report; the JSON has all

_READ_COPIES = (
    "Longest shared n-gram: the longest run of words that also occurs in a training narrative (case and punctuation "
    "ignored). References are texts of test users, which the model did not write. What they share with the training "
    "narratives is common phrasing and chance. Copying is the excess: prediction minus reference on the same example. "
    "A small excess alone is no proof, because greedy text prefers the most common wording. Word-for-word copies and "
    "the longest n-grams below show whether the model recites. A model that writes an average text is near the "
    "training narratives without copying any, so read similarity together with n-grams."
)
_READ_SWAP = (
    "One interaction is replaced by the final one of another test user, and the narrative is generated again, "
    "greedily. *Final*: the latest interaction is swapped; *other*: an earlier one. A model that does not read its "
    "history changes nothing. A narrative moves when it comes nearer to the narrative of that other user. The third "
    "row shows how similar the narratives of two users are anyway. The `noise` control draws other noise for another "
    "final interaction, so it changes without reading."
)
_READ_LABELS = (
    "Traits are those of the final item. A model that reads names the new item's traits after a swap of the final "
    "interaction, and still the old item's after any other swap. The need belongs to the user and should stay. "
    "*Before* is what the narrative names without a swap."
)
_READ_SLICES = (
    "Buckets are quantiles of the test narratives. Purchases are those of training users. A model that memorises items "
    "scores lower where items were rarely bought or unseen. A model that reads scores higher with a longer history. "
    "The floors vary between buckets too: compare with them."
)


def write_diagnosis(loaded: LoadedRun) -> Path:
    """Diagnoses a finished and evaluated run: copies of training narratives, swaps, slices.

    The swap test generates for at most 500 test narratives, drawn with the evaluation's seed.

    Args:
        loaded: The run, with predictions and scores in its folder.

    Returns:
        Path of the report `diagnosis.md`; `diagnosis.json` beside it has all numbers.
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
    longest, shown = _longest(copies, predictions), _shown_swaps(swaps)
    record = {
        "run": folder.name,
        "settings": plain(evaluation),
        "memorisation": {
            "training_narratives": copies.training_narratives,
            "summary": copies.summary.to_dicts(),
            "longest": longest,
        },
        "swap": {
            "examples": swaps.select(KEYS).unique().height,
            "summary": swapped.to_dicts(),
            "shown": shown,
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
            *_copies_section(copies, longest),
            *_swap_section(swaps, swapped, shown),
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
    narrator = greedy_narrator(
        loaded.model,
        make,
        generation=evaluation.generation,
        tokenizer=loaded.lm.tokenizer,
        batch_size=evaluation.batch_size,
        precision=evaluation.precision,
    )
    return swap_test(
        sampled(loaded.data.splits["test"].examples, SWAPPED_EXAMPLES, np.random.default_rng(evaluation.seed)),
        narrator,
        item_of=item_rows(tables).to_numpy(),
        embed=embedder(evaluation),
        planted=tables.planted,
        seed=evaluation.seed,
    )


def _longest(copies: Memorisation, predictions: pl.DataFrame) -> list[dict[str, Any]]:
    """The narratives whose shared n-gram exceeds that of their reference most."""
    rows = copies.examples.hstack(predictions.select("prediction"))
    excess = pl.col("longest") - pl.col("reference_longest")
    kept = rows.sort([-excess, -pl.col("longest")], maintain_order=True).head(SHOWN)
    return kept.select(*KEYS, "longest", "reference_longest", "shared", "prediction", "source").to_dicts()


def _shown_swaps(swaps: pl.DataFrame) -> list[dict[str, Any]]:
    """The first few swaps per position, changed narratives first."""
    columns = [*KEYS, "position", "place", "other_user", "before", "after"]
    ordered = swaps.sort("changed", descending=True, maintain_order=True)
    parts = [ordered.filter(pl.col("position") == at).head(SHOWN) for at in POSITIONS]
    return pl.concat(parts).select(columns).to_dicts()


def _copies_section(copies: Memorisation, longest: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"## Does it copy? {copies.training_narratives:,} distinct training narratives"
    for (feature,), rows in copies.summary.group_by(["feature"], maintain_order=True):
        columns = [memorising.PREDICTIONS, REFERENCES, EXCESS]
        yield f"### {feature}"
        yield _table(rows, "of", columns, memorising.MEASURES)
    yield _READ_COPIES
    yield "The largest excess over the reference:"
    yield "\n".join(
        f"- {row['longest']:.0f} words (reference {row['reference_longest']:.0f}): “{row['shared']}”, in "
        f"{_quoted(row['prediction'])}"
        for row in longest
    )


def _swap_section(swaps: pl.DataFrame, summary: pl.DataFrame, shown: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Does it follow a swap of one item?"
    for (feature,), rows in summary.group_by(["feature"], maintain_order=True):
        present = [position for position in POSITIONS if position in rows["position"].to_list()]
        yield f"### {feature}"
        yield _table(rows, "position", present, swapping.MEASURES)
    yield _READ_SWAP
    if "trait_compared" in swaps.columns:
        yield _READ_LABELS
    if swaps.filter(pl.col("position") == OTHER).is_empty():
        yield "Every history has one interaction, so no other position could be swapped."
    yield "\n".join(f"- {row['position']}: {_quoted(row['before'])} → {_quoted(row['after'])}" for row in shown)


def _slices_section(slices: pl.DataFrame) -> Iterator[str]:
    yield "## Where are the scores earned?"
    kept = slices.filter(pl.col("measure").is_in(SLICED_METRICS))
    for (feature, attribute), rows in kept.group_by(["feature", "attribute"], maintain_order=True):
        yield f"### {feature}: {ATTRIBUTES.get(str(attribute), str(attribute))}"
        measures = [METRICS[name] for name in SLICED_METRICS if name in rows["measure"].to_list()]
        lines = [["Bucket", "Narratives", "System", *(metric.display for metric in measures)]]
        for (bucket, system), cells in rows.group_by(["bucket", "system"], maintain_order=True):
            found = {row["measure"]: row for row in cells.to_dicts()}
            texts = [_estimate(found.get(metric.name), metric) for metric in measures]
            lines.append([str(bucket), f"{cells['examples'][0]:,}", str(system), *texts])
        yield "\n".join(markdown_table(lines))
    yield _READ_SLICES


def _table(rows: pl.DataFrame, across: str, columns: Sequence[str], metrics: Mapping[str, Metric]) -> str:
    """A Markdown table with one row per measure and one column per value of `across`."""
    found = {(row[across], row["measure"]): row for row in rows.to_dicts()}
    lines = [["Measure", *columns]]
    for name, metric in metrics.items():
        if any((column, name) in found for column in columns):
            lines.append([metric.display, *(_estimate(found.get((column, name)), metric) for column in columns)])
    return "\n".join(markdown_table(lines))


def _estimate(row: Mapping[str, Any] | None, metric: Metric) -> str:
    """Value and interval, with a star if they come from few users."""
    if row is None or row["value"] is None:
        return ABSENT
    value, *bounds = (
        ABSENT if row[name] is None else f"{row[name]:.{metric.decimals}f}" for name in ("value", "low", "high")
    )
    return f"{value} [{', '.join(bounds)}]" + (" \\*" if row["users"] < FEW_USERS else "")


def _quoted(text: str) -> str:
    return f"“{' '.join(text.split())}”"
