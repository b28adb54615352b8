"""Memorising: how much of what a model writes stands in its training narratives.

The paper says that the model constructs narratives from the history "instead of simply memorizing" (introduction), and
splits by user to force that (5.1); this measures it. A narrative that recites shares long runs of words with a training
narrative, and is nearer to one than a fresh text is. References are fresh texts of test users, and they share
formulas with the training narratives too, so what *they* share is the floor: copying is what lies above it.
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
from regen.evaluation.text_metrics import KEYS, Metric, check_predictions, ratio

PREDICTIONS, REFERENCES, EXCESS = "predictions", "references", "excess"
"""Whose texts a row of the summary speaks of; `excess` is prediction less reference, paired by example."""

SIMILARITY, NEAREST = "similarity", "nearest_similarity"
_BLOCK = 1024  # texts compared with all training narratives at a time


@dataclass(frozen=True)
class Memorisation:
    """What was found.

    Attributes:
        examples: a row per prediction, see `memorisation`.
        summary: `feature`, `of` (`predictions`, `references` or `excess`) and the columns of `ESTIMATES`.
        training_narratives: distinct texts that were searched.
    """

    examples: pl.DataFrame
    summary: pl.DataFrame
    training_narratives: int


def _mean(name: str, display: str, decimals: int, *, is_share: bool = False) -> Metric:
    return Metric(name, display, decimals, (name, "examples"), ratio, is_share)


MEASURES: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _mean("words", "Words", 1),
        _mean("longest", "Longest shared n-gram (words)", 2),
        _mean("share", "Its share of the words", 3, is_share=True),
        _mean("verbatim", "Word-for-word copies", 3, is_share=True),
        _mean(NEAREST, "Similarity to the nearest training narrative", 3),
        _mean(SIMILARITY, "Similarity to the own reference", 3),
    )
}


def memorisation(
    predictions: pl.DataFrame, training: Sequence[str], *, embed: Embed | None, resamples: int = 2000, seed: int = 0
) -> Memorisation:
    """Compares predictions, and the references beside them, with the narratives that the model was trained on.

    Words are case-folded and stripped of punctuation. A blank prediction shares nothing and is no copy.

    Args:
        predictions: columns `user_id, feature, item_id` (nullable), `prediction, reference`; the test users'.
        training: training narratives.
        embed: sentence embeddings; None leaves both similarities out.
        resamples: bootstrap resamples of users.
        seed: of the bootstrap.

    Returns:
        Frames per example and of estimates. The columns per example are `user_id, feature, item_id`; of the
        prediction `words` (how many), `longest` (words of the longest n-gram shared with any training narrative),
        `share` (of its words that this n-gram covers, 0 to 1), `verbatim` (1 where all its words in order are all
        words of a training narrative), `shared` (the n-gram), `source` (a training narrative that holds it, null
        where no word is shared), `nearest_similarity` (largest cosine with a training narrative); the same of the
        reference with `reference_` before the name; and `similarity` (cosine with the own reference).

    Raises:
        ValueError: when predictions lack a column or text, or there is no training narrative.
    """
    check_predictions(predictions)
    corpus = sorted({text for text in training if text.strip()})
    if not corpus:
        raise ValueError("there is no training narrative to compare with: 0 texts that are not blank.")
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
    """What the corpus holds of each text word for word, columns as in `memorisation`."""
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
    """Estimates per feature of predictions, references and their paired difference."""
    measures = [metric for name, metric in MEASURES.items() if name in examples.columns]
    paired = [metric for metric in measures if metric.name != SIMILARITY]  # a reference is its own reference
    names = [metric.name for metric in paired]
    columns = {
        PREDICTIONS: [pl.col(metric.name) for metric in measures],
        REFERENCES: [pl.col(f"reference_{name}").alias(name) for name in names],
        EXCESS: [(pl.col(name) - pl.col(f"reference_{name}")).alias(name) for name in names],
    }
    parts = []
    for of, chosen in columns.items():
        rows = examples.select("user_id", "feature", pl.lit(of).alias("of"), pl.lit(1.0).alias("examples"), *chosen)
        shown = measures if of == PREDICTIONS else paired
        parts.append(estimate_table(rows, shown, by=["feature", "of"], resamples=resamples, seed=seed))
    return pl.concat(parts)
