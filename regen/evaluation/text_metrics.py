"""Text metrics as functions of sums over examples (paper 5.2).

`score_examples` turns every prediction into a row of *statistics*. A `Metric` maps sums of those rows to its value.
Corpus BLEU, means and ratios of sums all have this form, so the bootstrap over users is one matrix product.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import polars as pl
from jaxtyping import Float
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER

from regen.data.grounding import ungrounded
from regen.evaluation.identification import ALL, CANDIDATES, OF_ITEM, OF_USER, RECIPROCAL, identification_columns
from regen.evaluation.recovery import NEED, recovery_columns
from regen.evaluation.similarity import Embed, similarity_column, unit_vectors

OwnMetric = Callable[[str, str], float]
"""A custom metric: maps one prediction and its reference to a number. Its mean is a row of the table."""
OWN = "own_"  # prefix of the column of a custom metric

KEYS = ("user_id", "feature", "item_id")
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
CUTS = (1, 5, 10, 20, 50)  # k of Recall@k
PERCENT, UNIT, COSINE = (0.0, 100.0), (0.0, 1.0), (-1.0, 1.0)
_ORDERS = range(1, MAX_NGRAM_ORDER + 1)
_BLEU_COLUMNS = (
    *(f"bleu_correct_{n}" for n in _ORDERS),
    *(f"bleu_total_{n}" for n in _ORDERS),
    "bleu_predicted_length",
    "bleu_reference_length",
)


@dataclass(frozen=True)
class Metric:
    """A score that is a function of sums of statistic columns over examples.

    Attributes:
        name: the key in `METRICS` and in `scores.json`.
        display: the row's name in a table.
        decimals: digits after the point in a table.
        columns: the `k` statistic columns it needs.
        aggregate: maps sums of shape `(..., k)` to values `(...)`; nan where a denominator is zero.
        is_share: a share of narratives, compared by percentage points rather than by a relative difference.
        limits: smallest and largest possible value; intervals are clipped to them. Shares are clipped to 0 and 1.
        higher_is_better: False where lower is better, and for length and variety, where neither is better.
        is_planted: recovery of a planted label; tables add the verdict of the non-inferiority test.
        chance: kind of chance level in the caption, see `regen.evaluation.identification.chance`; None for none.
    """

    name: str
    display: str
    decimals: int
    columns: tuple[str, ...]
    aggregate: Callable[[Float[np.ndarray, "*batch k"]], Float[np.ndarray, "*batch"]]
    is_share: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)
    higher_is_better: bool = True
    is_planted: bool = False
    chance: int | str | None = None


def ratio(sums: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch"]:
    """Numerator over denominator; nan where the denominator is zero."""
    numerator, denominator = sums[..., 0], sums[..., 1]
    out = np.full_like(numerator, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=out, where=denominator != 0))


def percent(sums: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch"]:
    """`ratio` times 100."""
    return np.asarray(100.0 * ratio(sums))


def corpus_bleu(sums: Float[np.ndarray, "*batch 10"]) -> Float[np.ndarray, "*batch"]:
    """Corpus BLEU (0 to 100) with sacrebleu's defaults: order 4, exponential smoothing.

    Like sacrebleu it is 0 where nothing matches or no prediction has four tokens.

    Args:
        sums: summed n-gram matches (4), n-grams of the predictions (4), length of predictions, length of references.
    """
    correct, total = sums[..., :MAX_NGRAM_ORDER], sums[..., MAX_NGRAM_ORDER : 2 * MAX_NGRAM_ORDER]
    predicted, referenced = sums[..., -2], sums[..., -1]
    scored = (correct[..., 0] > 0) & (total > 0).all(axis=-1)
    unmatched = np.cumsum(correct == 0, axis=-1)  # the j-th order without a match counts as 1 / 2^j matches
    smoothed = np.where(correct == 0, 0.5**unmatched, correct)
    log_precision = np.log(100.0 * smoothed / np.where(total > 0, total, 1.0)).sum(axis=-1) / MAX_NGRAM_ORDER
    shortfall = 1.0 - referenced / np.where(predicted > 0, predicted, 1.0)
    return np.where(scored, np.exp(np.minimum(shortfall, 0.0)) * np.exp(log_precision), 0.0)


def mean_metric(
    name: str,
    display: str,
    decimals: int = 3,
    *,
    of: str = "examples",
    is_share: bool = False,
    limits: tuple[float, float] = (-math.inf, math.inf),
    higher_is_better: bool = True,
) -> Metric:
    """The mean of the statistic column `name` over the examples that the column `of` counts."""
    return Metric(name, display, decimals, (name, of), ratio, is_share, limits, higher_is_better)


def by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """Metrics by name, in their order."""
    return {metric.name: metric for metric in metrics}


def _recovery(name: str, display: str, stem: str) -> Metric:
    return Metric(name, display, 3, (f"{stem}_right", f"{stem}_named"), ratio, is_share=True, is_planted=True)


def _identification(kind: int | str, display: str, *, stem: str = OF_USER) -> Metric:
    name, is_share = f"{stem}_{kind}", kind != RECIPROCAL
    return Metric(name, display, 3, (name, f"{name}_of"), ratio, is_share=is_share, limits=UNIT, chance=kind)


METRICS: dict[str, Metric] = by_name(
    (
        _recovery("need_recovery", "Need recovery", f"recovery_{NEED}"),
        _recovery("trait_recovery", "Trait recovery", "trait"),
        *(_identification(k, f"Identification@{k}") for k in CANDIDATES),
        _identification(RECIPROCAL, "MRR of all users"),
        _identification(CANDIDATES[0], f"Item identification@{CANDIDATES[0]}", stem=OF_ITEM),
        mean_metric("similarity", "Similarity", limits=COSINE),
        mean_metric("ungrounded", "Ungrounded names and numbers", is_share=True, higher_is_better=False),
        Metric("bleu", "BLEU", 2, _BLEU_COLUMNS, corpus_bleu, limits=PERCENT),
        *(Metric(name, display, 2, (name, "examples"), percent, limits=PERCENT) for name, display in ROUGE.items()),
        Metric(
            "length_ratio",
            "Length ratio",
            3,
            ("predicted_words", "reference_words"),
            ratio,
            limits=(0.0, math.inf),
            higher_is_better=False,
        ),
        mean_metric("empty", "Empty texts", is_share=True, higher_is_better=False),
        mean_metric("distinct", "Distinct", limits=UNIT, higher_is_better=False),
        *(mean_metric(f"recall_{k}", f"Recall@{k}", limits=UNIT) for k in CUTS),
        mean_metric("ndcg_10", "NDCG@10", limits=UNIT),
        mean_metric("mrr", "MRR", limits=UNIT),
        _recovery("item_traits", "Traits of its item", "item_trait"),
        mean_metric("nearest_item", "Nearest to its item", is_share=True),
        mean_metric("similarity_hit", "Similarity, right item", of="hits", limits=COSINE),
        mean_metric("similarity_miss", "Similarity, another", of="misses", limits=COSINE),
        mean_metric("cold_recall_10", "Recall@10, cold items", of="cold_examples", limits=UNIT),
    )
)
"""The rows of a table in order, metrics about the user first. `metrics_for` adds those that only the CSV shows."""

_CSV_ONLY = (
    _identification(ALL, "Identification among all"),
    _identification(CANDIDATES[1], f"Item identification@{CANDIDATES[1]}", stem=OF_ITEM),
    _identification(ALL, "Item identification among all", stem=OF_ITEM),
    _identification(RECIPROCAL, "MRR of all items", stem=OF_ITEM),
)


def display_of(name: str) -> tuple[str, int]:
    """The row's name and digits after the point of any metric in `scores.json`; a custom metric keeps its name."""
    if (known := (METRICS | by_name(_CSV_ONLY)).get(name)) is not None:
        return known.display, known.decimals
    return (f"Recovery: {name.removeprefix('recovery_')}" if name.startswith("recovery_") else name), 3


def metrics_for(columns: Sequence[str]) -> dict[str, Metric]:
    """The metrics that these statistic columns allow: table rows, then CSV-only metrics, then custom ones."""
    present = by_name(metric for metric in (*METRICS.values(), *_CSV_ONLY) if set(metric.columns) <= set(columns))
    for column in columns:
        label = column.removeprefix("recovery_").removesuffix("_right")
        if column == f"recovery_{label}_right" and label != NEED:
            present[f"recovery_{label}"] = _recovery(f"recovery_{label}", f"Recovery: {label}", f"recovery_{label}")
    for column in columns:
        if column.startswith(OWN):
            name = column.removeprefix(OWN)
            present[name] = Metric(name, name, 3, (column, "examples"), ratio)
    return present


@cache
def rouge_tokenizer(*, stemmer: bool) -> DefaultTokenizer:
    """ROUGE's own tokenizer with a cache, because every reference is scored for several systems.

    `stemmer` strips suffixes with the Porter stemmer, as option -m of ROUGE-1.5.5 does.
    """
    tokenizer = DefaultTokenizer(stemmer)
    tokenizer.tokenize = lru_cache(maxsize=100_000)(tokenizer.tokenize)
    return tokenizer


@cache
def rouge_scorer(*, stemmer: bool) -> RougeScorer:
    """The reference scorer with all four variants; Lsum splits sentences at newlines."""
    return RougeScorer(list(ROUGE), tokenizer=rouge_tokenizer(stemmer=stemmer))


def bleu_columns(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """sacrebleu's counts per example; their sums give corpus BLEU."""
    bleu = BLEU(effective_order=True)  # silences a warning; it changes the sentence's score, but not the counts
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        score = bleu.sentence_score(prediction, [reference])
        rows.append((*score.counts, *score.totals, score.sys_len, score.ref_len))
    return {name: [float(row[k]) for row in rows] for k, name in enumerate(_BLEU_COLUMNS)}


def rouge_columns(predictions: Sequence[str], references: Sequence[str], *, stemmer: bool) -> dict[str, list[float]]:
    """F1 (0 to 1) of the four ROUGE variants per example."""
    scorer = rouge_scorer(stemmer=stemmer)
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {name: [float(score[name].fmeasure) for score in scores] for name in ROUGE}


def distinct_column(predictions: Sequence[str], groups: Sequence[str]) -> list[float]:
    """1 / (number of equal predictions in the group); its mean is #distinct / #predictions."""
    keys = list(zip(groups, predictions, strict=True))
    count = Counter(keys)
    return [1.0 / count[key] for key in keys]


def check_predictions(predictions: pl.DataFrame) -> None:
    """Raises a ValueError when predictions have no rows, or lack a column, a text or a reference."""
    missing = [name for name in (*KEYS, "prediction", "reference") if name not in predictions.columns]
    if missing:
        raise ValueError(
            f"predictions have no column {missing[0]!r}; they need {', '.join(KEYS)}, prediction, reference."
        )
    if predictions.is_empty():
        raise ValueError("there is no prediction to score: 0 rows.")
    for name in ("user_id", "feature", "prediction", "reference"):
        if predictions[name].null_count():
            first = int(predictions[name].is_null().arg_max() or 0)
            raise ValueError(
                f"row {first + 1} of the predictions has no {name}; write an empty string for an empty text."
            )
    blank = predictions["reference"].str.strip_chars() == ""
    if blank.any():
        user = predictions["user_id"][int(blank.arg_max() or 0)]
        raise ValueError(
            f"{blank.sum()} references are blank; the first is of user {user!r}. Leave such narratives out."
        )


def score_examples(
    predictions: pl.DataFrame,
    *,
    embed: Embed | None,
    planted: pl.DataFrame | None = None,
    stemmer: bool = True,
    own: Mapping[str, OwnMetric] | None = None,
    candidates: pl.DataFrame | None = None,
    brands: Collection[str] = (),
) -> pl.DataFrame:
    """Scores every prediction against its reference.

    Args:
        predictions: columns `user_id, feature, item_id` (nullable), `prediction, reference`. The optional column
            `category` (of the item) adds identification among items. The optional column `history` (texts from
            `regen.data.grounding.history_texts`) adds the share of texts with ungrounded names and numbers.
        embed: sentence embeddings for similarity and identification; None skips these metrics.
        planted: the truth of a `synthetic` world (see `recovery_columns`), None for other sources.
        stemmer: Porter-stem words for ROUGE.
        own: custom metrics by name.
        candidates: rows whose references are the candidates of identification; None for those of `predictions`.
        brands: brands of the catalogue, which always count as names.

    Returns:
        `user_id, feature, item_id` and the statistic columns, one row per prediction in the given order.

    Raises:
        ValueError: when a column or text is missing, a reference is blank, or `embed` or `planted` is unusable.
    """
    check_predictions(predictions)
    predicted, referenced = predictions["prediction"].to_list(), predictions["reference"].to_list()
    columns: dict[str, Sequence[float] | Float[np.ndarray, " rows"]] = {
        "examples": [1.0] * predictions.height,
        **bleu_columns(predicted, referenced),
    }
    columns |= rouge_columns(predicted, referenced, stemmer=stemmer)
    if embed is not None:
        known = predictions if candidates is None else candidates
        vectors = unit_vectors([*predicted, *referenced, *known["reference"]], embed)
        columns["similarity"] = similarity_column(predicted, referenced, vectors)
        columns |= identification_columns(predictions, known, vectors)
    if "history" in predictions.columns:
        found = zip(predicted, predictions["history"], strict=True)
        columns["ungrounded"] = [float(bool(ungrounded(text, history, brands))) for text, history in found]
    columns["predicted_words"] = [float(len(text.split())) for text in predicted]
    columns["empty"] = [float(not text.strip()) for text in predicted]
    columns["reference_words"] = [float(len(text.split())) for text in referenced]
    columns["distinct"] = distinct_column(predicted, predictions["feature"].to_list())
    if planted is not None:
        columns |= recovery_columns(predictions, planted)
    for name, metric in (own or {}).items():
        columns[f"{OWN}{name}"] = [float(metric(*pair)) for pair in zip(predicted, referenced, strict=True)]
    return predictions.select(KEYS).with_columns(
        pl.Series(name, values, dtype=pl.Float64) for name, values in columns.items()
    )
