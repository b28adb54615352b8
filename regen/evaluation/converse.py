"""Stage `evaluate` of `task=converse`: ranks, and narratives about the right item and the recommended item."""

from typing import Any

import numpy as np
import polars as pl
import torch

from regen.data.conversation import ConversationDataset
from regen.data.prepare import load_tables
from regen.embeddings.interaction_texts import item_parts
from regen.evaluation.recommend import catalogue, rank_test_users, ranking_parts
from regen.evaluation.recovery import NEED, planted_labels
from regen.evaluation.scoring import ScoringOptions, statistics_of, with_floors
from regen.evaluation.similarity import Embed
from regen.generation.narratives import generate_narratives
from regen.runtime.costs import Stopwatch
from regen.training.recommendation import NextItemData
from regen.training.run import LoadedRun

CANDIDATES = 10  # top-ranked items; a narrative should be nearest to its own item among them
RECOMMENDED = "recommended_prediction"  # column of narratives about the item ranked first


def converse_with_test_users(loaded: LoadedRun, watch: Stopwatch) -> pl.DataFrame:
    """Ranks each test user's next item, and writes two narratives: about that item, and about the one ranked first.

    Args:
        loaded: A finished run.
        watch: Times `prefill` and `generation`.

    Returns:
        The columns of `rank_test_users`, `prediction`, `recommended_prediction` and `reference`.
    """
    data, evaluation = loaded.data, loaded.run.config.evaluation
    assert isinstance(data, NextItemData)
    test = data.splits["test"]
    assert isinstance(test, ConversationDataset)
    options: dict[str, Any] = {
        "tokenizer": loaded.lm.tokenizer,
        "generation": evaluation.generation,
        "batch_size": evaluation.batch_size,
        "seed": evaluation.seed,
        "precision": evaluation.precision,
        "watch": watch,
    }
    ranked = rank_test_users(loaded, watch)
    row_of = {item: row for row, item in enumerate(catalogue(loaded.run))}
    first = [row_of[items[0]] for items in ranked["recommended"]]
    told = generate_narratives(loaded.model, test, **options)
    about = test.about(data.closed_form.items[torch.tensor(first)].numpy())
    recommended = generate_narratives(loaded.model, about, **options)
    return ranked.with_columns(told["prediction"], recommended["prediction"].alias(RECOMMENDED), told["reference"])


def conversation_statistics(
    predictions: pl.DataFrame,
    loaded: LoadedRun,
    options: ScoringOptions,
    *,
    train: pl.DataFrame,
    validation: pl.DataFrame,
    embed: Embed,
) -> pl.DataFrame:
    """Rows of `examples.parquet`: the ranking, narratives about the right item, and about the recommended item.

    The feature of the last has the suffix ", recommended item". They are scored against the user's reference, which is
    about the right item, and by whether they are about their own item.

    Args:
        predictions: From `converse_with_test_users`, with columns `category` and `history`.
        loaded: The run.
        options: Scoring options.
        train: As for `score_run_files`.
        validation: As for `score_run_files`.
        embed: Sentence embeddings.
    """
    tables = load_tables(loaded.run.inputs.prepared.path)
    scored: dict[str, Any] = {"embed": embed, "planted": tables.planted, "options": options}
    columns = ("user_id", "feature", "item_id", "prediction", "reference")
    told = predictions.select(*columns, "category", "history")
    right = statistics_of(with_floors(told, train=train, validation=validation, options=options), **scored)
    about = told.select(columns).with_columns(
        pl.col("feature") + ", recommended item", prediction=predictions[RECOMMENDED]
    )
    hit = (predictions["rank"] == 1).cast(pl.Float64)
    recommended = statistics_of({"model": about}, **scored).with_columns(
        hit.alias("hits"),
        (1 - hit).alias("misses"),
        *_own_item(predictions, _texts(tables.items), tables.planted, embed),
        similarity_hit=pl.col("similarity") * hit,
        similarity_miss=pl.col("similarity") * (1 - hit),
    )
    return pl.concat([ranking_parts(predictions, loaded), right, recommended], how="diagonal")


def _texts(items: pl.DataFrame) -> dict[str, str]:
    """Title, description and category of each item."""
    parts = item_parts(items).with_columns(pl.all().fill_null(""))
    return {row[0]: " ".join(filter(None, row[1:])) for row in zip(items["item_id"], *parts, strict=True)}


def _own_item(
    predictions: pl.DataFrame, text_of: dict[str, str], planted: pl.DataFrame | None, embed: Embed
) -> list[pl.Series]:
    """Whether each narrative about the recommended item is about this item and no other."""
    written = predictions[RECOMMENDED].to_list()
    candidates = [[text_of[item] for item in items[:CANDIDATES]] for items in predictions["recommended"]]
    texts = sorted({*written, *(text for row in candidates for text in row)})
    vector = dict(zip(texts, embed(texts), strict=True))
    nearest = [
        _first_is_nearest(vector[text], np.stack([vector[one] for one in row]))
        for text, row in zip(written, candidates, strict=True)
    ]
    found = {"nearest_item": nearest}
    if planted is not None:
        found |= _named_traits(written, [row[0] for row in candidates], predictions["reference"].to_list(), planted)
    return [pl.Series(name, values, dtype=pl.Float64) for name, values in found.items()]


def _first_is_nearest(text: np.ndarray, items: np.ndarray) -> float:
    """1 if the first item is the nearest to the text; equally near items share this 1."""
    near = items @ text
    best = near >= near.max() - 1e-6
    return float(best[0] / best.sum())


def _named_traits(
    written: list[str], items: list[str], references: list[str], planted: pl.DataFrame
) -> dict[str, list[float]]:
    """Counts traits of its item that a text names, among the labels that the reference names."""
    right, asked = np.zeros(len(written)), np.zeros(len(written))
    for label in planted_labels(planted):
        if label.name == NEED:
            continue
        for at, (said, own, told) in enumerate(zip(*map(label.named, (written, items, references)), strict=True)):
            if told and len(own) == 1:
                asked[at] += 1
                right[at] += said == own
    return {"item_trait_right": right.tolist(), "item_trait_named": asked.tolist()}
