"""Floors: predictions without knowledge of the user, scored like a model's.

*Shuffled* pairs each prediction with another user's reference, which shows what fluency and style alone earn.
*Constant* predicts one text for everyone, which shows what the most typical narrative earns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import polars as pl
from tqdm import tqdm

from regen.evaluation.text_metrics import rouge_scorer, rouge_tokenizer

Value = TypeVar("Value")


def shuffled(predictions: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """Gives every row a prediction that was made for another user of the same feature.

    Rows keep user, item and reference. Within a feature the users form a random circle, and each takes the predictions
    of the next user, repeating them when there are too few.

    Args:
        predictions: columns `user_id, feature, prediction` and any others.
        seed: with the users, determines the circle; the order of rows does not matter.

    Raises:
        ValueError: when a feature has fewer than two users.
    """
    numbered = predictions.with_row_index("row")
    source = np.empty(predictions.height, dtype=np.int64)
    for (feature,), group in numbered.group_by("feature", maintain_order=True):
        rows_of = dict(group.group_by("user_id").agg("row").iter_rows())
        if len(rows_of) < 2:
            raise ValueError(f"feature {feature!r} has {len(rows_of)} user; shuffling needs at least two.")
        circle = np.random.default_rng(seed).permutation(np.array(sorted(rows_of), dtype=object))
        for user, other in zip(circle, np.roll(circle, -1), strict=True):
            for turn, row in enumerate(rows_of[user]):
                source[row] = rows_of[other][turn % len(rows_of[other])]
    return predictions.with_columns(predictions["prediction"].gather(source))


def constant(
    train: pl.DataFrame,
    validation: pl.DataFrame,
    test: pl.DataFrame,
    *,
    stemmer: bool = True,
    seed: int = 0,
) -> pl.DataFrame:
    """Predicts for every test row the single training narrative of its feature that fits validation best.

    Args:
        train: the candidates, columns `feature, text`.
        validation: the references that the candidates are scored on, columns `feature, text`.
        test: predictions; their `prediction` column is replaced.
        stemmer: Porter-stem words for ROUGE.
        seed: seed of the samples, see `best_constant`.

    Raises:
        ValueError: when a feature has no training or no validation narrative.
    """
    best: dict[str, str] = {}
    for feature in sorted(test["feature"].unique()):
        texts = {}
        for split, narratives in (("training", train), ("validation", validation)):
            texts[split] = narratives.filter((pl.col("feature") == feature) & (pl.col("text").str.strip_chars() != ""))
            if texts[split].is_empty():
                raise ValueError(
                    f"feature {feature!r} has 0 {split} narratives, which the constant floor needs; "
                    "use a data set with more users, or leave that feature out."
                )
        candidates, references = texts["training"]["text"].to_list(), texts["validation"]["text"].to_list()
        best[feature] = best_constant(candidates, references, stemmer=stemmer, seed=seed, name=feature)
    return test.with_columns(prediction=pl.col("feature").replace_strict(best, return_dtype=pl.String))


def best_constant(
    candidates: Sequence[str],
    references: Sequence[str],
    *,
    stemmer: bool = True,
    seed: int = 0,
    sample: int = 100,
    name: str = "narrative",
) -> str:
    """The candidate with the highest mean ROUGE-Lsum on the references; the first in the alphabet wins a tie.

    Args:
        candidates: texts to choose from; repeats count once.
        references: texts to score them on.
        stemmer: Porter-stem words for ROUGE.
        seed: seed of the samples; the order of texts does not matter.
        sample: at most this many candidates and references are drawn.
        name: label of the progress bar.
    """
    generator = np.random.default_rng(seed)
    tried = sampled(sorted(set(candidates)), sample, generator)
    judges = sampled(sorted(references), sample, generator)
    score = {
        text: sum(rouge_lsum(reference, text, stemmer=stemmer) for reference in judges)
        for text in tqdm(tried, desc=f"constant floor, {name}", unit="text", leave=False, disable=None)
    }
    return min(tried, key=lambda text: (-score[text], text))


def sampled(values: Sequence[Value], most: int, generator: np.random.Generator) -> list[Value]:
    """At most `most` random values, in their original order."""
    if len(values) <= most:
        return list(values)
    return [values[index] for index in sorted(generator.choice(len(values), most, replace=False))]


def rouge_lsum(reference: str, prediction: str, *, stemmer: bool) -> float:
    """ROUGE-Lsum F1 (0 to 1) of one pair, equal to rouge-score's.

    For texts of one line Lsum is ROUGE-L, and `lcs_length` is about fifty times faster than rouge-score. Texts with
    several lines go to rouge-score.
    """
    if "\n" in reference or "\n" in prediction:
        return float(rouge_scorer(stemmer=stemmer).score(reference, prediction)["rougeLsum"].fmeasure)
    tokenize = rouge_tokenizer(stemmer=stemmer).tokenize
    referenced, predicted = tokenize(reference), tokenize(prediction)
    if not referenced or not predicted:
        return 0.0
    return 2.0 * lcs_length(referenced, predicted) / (len(referenced) + len(predicted))


def lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, by the bit-parallel algorithm of Hyyrö (2004).

    Bit i of `open_ends` is cleared when `left[i]` makes the subsequence longer than the bits below it do.
    """
    places: dict[str, int] = {}
    for index, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << index
    every = (1 << len(left)) - 1
    open_ends = every
    for token in right:
        matches = open_ends & places.get(token, 0)
        open_ends = ((open_ends + matches) | (open_ends - matches)) & every
    return len(left) - open_ends.bit_count()
