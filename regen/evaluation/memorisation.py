"""Memorisation: how much of a model's text already occurs in its training narratives.

The paper claims that the model builds narratives from the history "instead of simply memorizing" (introduction) and
splits by user to force that (5.1). This measures it. A recited narrative shares long runs of words with a training
narrative. The references of test users, which the model never saw, share some phrases with training narratives as well.
They are the floor: copying is what exceeds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from regen.evaluation.estimate_tables import estimate_table
from regen.evaluation.shared_ngrams import longest_shared_ngrams, words_of
from regen.evaluation.similarity import Embed, similarity_column, unit_vectors
from regen.evaluation.text_metrics import KEYS, Metric, by_name, check_predictions, mean_metric

PREDICTIONS, REFERENCES, EXCESS = "predictions", "references", "excess"
"""The texts that a row of the summary is about; `excess` is prediction minus reference, paired by example."""

SIMILARITY, NEAREST = "similarity", "nearest_similarity"
_BLOCK = 1024  # texts compared with all training narratives at a time


@dataclass(frozen=True)
class Memorisation:
    """The result of `memorisation`.

    Attributes:
        examples: one row per prediction, see `memorisation`.
        summary: `feature`, `of` (`predictions`, `references` or `excess`) and the columns of `ESTIMATES`.
        training_narratives: distinct texts that were searched.
    """

    examples: pl.DataFrame
    summary: pl.DataFrame
    training_narratives: int


MEASURES: dict[str, Metric] = by_name(
    (
        mean_metric("words", "Words", 1),
        mean_metric("longest", "Longest shared n-gram (words)", 2),
        mean_metric("share", "Its share of the words", is_share=True),
        mean_metric("verbatim", "Word-for-word copies", is_share=True),
        mean_metric(NEAREST, "Similarity to the nearest training narrative"),
        mean_metric(SIMILARITY, "Similarity to the own reference"),
    )
)


def memorisation(
    predictions: pl.DataFrame, training: Sequence[str], *, embed: Embed | None, resamples: int = 2000, seed: int = 0
) -> Memorisation:
    """Compares the predictions and references of test users with the training narratives.

    Words are case-folded and stripped of punctuation. A blank prediction shares nothing and is no copy.

    Args:
        predictions: columns `user_id, feature, item_id` (nullable), `prediction, reference`.
        training: training narratives.
        embed: sentence embeddings; None skips both similarities.
        resamples: bootstrap resamples of users.
        seed: seed of the bootstrap.

    Returns:
        A frame per example and a frame of estimates. The columns per example are `user_id, feature, item_id` and, for
        the prediction: `words` (number of words), `longest` (length in words of the longest n-gram shared with any
        training narrative), `share` (share of its words in this n-gram, 0 to 1), `verbatim` (1 if its words equal
        those of a training narrative), `shared` (the n-gram), `source` (a training narrative that contains it, null
        without a shared word), `nearest_similarity` (largest cosine with a training narrative). The reference has the
        same columns with the prefix `reference_`. `similarity` is the cosine of prediction and reference.

    Raises:
        ValueError: when predictions lack a column or text, or there is no training narrative.
    """
    check_predictions(predictions)
    corpus = sorted({text for text in training if text.strip()})
    if not corpus:
        raise ValueError("there is no training narrative to compare with: all texts are blank or absent.")
    examples = predictions.select(KEYS)
    texts = {"": predictions["prediction"].to_list(), "reference_": predictions["reference"].to_list()}
    distinct = sorted({text for column in texts.values() for text in column})
    row_of = {text: row for row, text in enumerate(distinct)}
    found = _copied(distinct, corpus)
    similarity = None
    if embed is not None:
        vectors = embed(distinct)
        found = found.with_columns(pl.Series(NEAREST, nearest_similarity(vectors, embed(corpus))))
        of_text = unit_vectors(distinct, lambda _: vectors)
        similarity = similarity_column(texts[""], texts["reference_"], of_text)
    for prefix, column in texts.items():
        own = found[[row_of[text] for text in column]]
        examples = examples.hstack(own.select(pl.all().name.prefix(prefix)))
    if similarity is not None:
        examples = examples.with_columns(pl.Series(SIMILARITY, similarity, dtype=pl.Float64))
    return Memorisation(examples, _summary(examples, resamples=resamples, seed=seed), len(corpus))


def nearest_similarity(
    texts: Float[np.ndarray, "texts dim"], corpus: Float[np.ndarray, "corpus dim"]
) -> Float[np.ndarray, " texts"]:
    """Largest cosine of each text with any text of the corpus; all rows have unit norm or are zero."""
    blocks = [(texts[row : row + _BLOCK] @ corpus.T).max(axis=1) for row in range(0, len(texts), _BLOCK)]
    return np.concatenate(blocks).astype(np.float64)


def _copied(texts: list[str], corpus: list[str]) -> pl.DataFrame:
    """Word-for-word overlap of each text with the corpus, columns as in `memorisation`."""
    found = longest_shared_ngrams(texts, corpus)
    words = np.array([len(said) for said in found.words], dtype=np.float64)
    whole = {" ".join(words_of(text)) for text in corpus}
    return pl.DataFrame(
        {
            "words": words,
            "longest": found.length.astype(np.float64),
            "share": found.length / np.maximum(words, 1),
            "verbatim": [float(bool(said) and " ".join(said) in whole) for said in found.words],
            "shared": [found.ngram(row) for row in range(len(texts))],
            "source": pl.Series([None if at < 0 else corpus[at] for at in found.source.tolist()], dtype=pl.String),
        }
    )


def _summary(examples: pl.DataFrame, *, resamples: int, seed: int) -> pl.DataFrame:
    """Estimates per feature for predictions, references and their paired difference."""
    names = [name for name in MEASURES if name in examples.columns]
    paired = [name for name in names if name != SIMILARITY]  # a reference is its own reference
    columns = {
        PREDICTIONS: {name: pl.col(name) for name in names},
        REFERENCES: {name: pl.col(f"reference_{name}") for name in paired},
        EXCESS: {name: pl.col(name) - pl.col(f"reference_{name}") for name in paired},
    }
    parts = []
    for of, chosen in columns.items():
        rows = examples.select("user_id", "feature", of=pl.lit(of), examples=pl.lit(1.0), **chosen)
        metrics = [MEASURES[name] for name in chosen]
        parts.append(estimate_table(rows, metrics, by=["feature", "of"], resamples=resamples, seed=seed))
    return pl.concat(parts)
