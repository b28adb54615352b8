"""Memorising: shared n-grams against a naive search, and made-up models that copy or do not."""

import random
import time

import numpy as np
import polars as pl
import pytest

from regen.evaluation.memorisation import memorisation, nearest_similarity
from regen.evaluation.shared_ngrams import longest_shared_ngrams, words_of

NOUNS = ["pens", "paper", "ink", "gift", "school", "studio", "parcel", "label", "desk", "stapler"]
VERBS = ["wants", "needs", "likes", "orders", "returns", "keeps", "sorts", "packs"]


def embed(texts):
    counts = np.array([[0.1, *(text.casefold().count(word) for word in NOUNS + VERBS)] for text in texts])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def narrative(rng, length=12):
    return " ".join(rng.choice(NOUNS if at % 2 else VERBS) for at in range(length))


@pytest.fixture(scope="module")
def training():
    rng = random.Random(0)
    return [narrative(rng) for _ in range(60)]


def predictions_of(texts, references=None, feature="f"):
    rng = random.Random(1)
    references = references or [narrative(rng) for _ in texts]
    return pl.DataFrame(
        {
            "user_id": [f"u{row}" for row in range(len(texts))],
            "feature": feature,
            "item_id": pl.Series([None] * len(texts), dtype=pl.String),
            "prediction": texts,
            "reference": references,
        }
    )


def estimate(found, of, measure):
    row = found.summary.filter((pl.col("of") == of) & (pl.col("measure") == measure))
    assert row.height == 1
    return row.to_dicts()[0]


def naive_longest(text, corpus):
    words = words_of(text)
    for n in range(len(words), 0, -1):
        grams = {tuple(other[at : at + n]) for other in map(words_of, corpus) for at in range(len(other) - n + 1)}
        if any(tuple(words[at : at + n]) in grams for at in range(len(words) - n + 1)):
            return n
    return 0


@pytest.mark.parametrize("seed", range(12))
def test_longest_shared_ngram_is_that_of_a_naive_search(seed):
    rng = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(rng.choice([2, 5, 40]))]
    texts, corpus = (
        [" ".join(rng.choices([*vocabulary, f"own{part}"], k=rng.randint(0, 40))) for _ in range(rng.randint(1, 20))]
        for part in (0, 1)
    )
    found = longest_shared_ngrams(texts, corpus)
    assert found.length.tolist() == [naive_longest(text, corpus) for text in texts]
    for row, length in enumerate(found.length):
        if length:
            assert f" {found.ngram(row)} " in f" {' '.join(words_of(corpus[found.source[row]]))} "
            assert len(found.ngram(row).split()) == length
        else:
            assert found.source[row] == -1


def test_an_ngram_does_not_run_over_the_end_of_a_text():
    found = longest_shared_ngrams(["a b c d", "a b x", ""], ["x a b", "c d", "b c"])
    assert found.length.tolist() == [2, 2, 0]
    assert longest_shared_ngrams(["a b"], []).length.tolist() == [0]


def test_case_and_punctuation_do_not_hide_a_copy():
    said = predictions_of(["the customer\u2019s PENS; they like ink", "pens and other things"])
    found = memorisation(said, ["The customer\u2019s pens: they like ink."], embed=None, resamples=100)
    assert found.examples["verbatim"].to_list() == [1.0, 0.0]
    assert found.examples["shared"][0] == "the customer\u2019s pens they like ink"


def test_a_model_that_recites_training_narratives_is_found_to_copy(training):
    found = memorisation(predictions_of(training[:40]), training, embed=embed, resamples=200)
    assert found.training_narratives == len(set(training))
    assert estimate(found, "predictions", "verbatim")["value"] == 1.0
    assert estimate(found, "predictions", "share")["value"] == 1.0
    assert estimate(found, "predictions", "nearest_similarity")["value"] == pytest.approx(1.0)
    assert estimate(found, "references", "verbatim")["value"] == 0.0
    assert estimate(found, "excess", "longest")["low"] > 4
    assert estimate(found, "excess", "share")["low"] > 0.3
    assert estimate(found, "excess", "nearest_similarity")["low"] > 0
    own = estimate(found, "predictions", "similarity")
    assert own["high"] < estimate(found, "predictions", "nearest_similarity")["low"]
    assert own["users"] == own["examples"] == 40


def test_a_model_that_writes_like_the_references_has_no_excess(training):
    rng = random.Random(5)
    found = memorisation(predictions_of([narrative(rng) for _ in range(60)]), training, embed=embed, resamples=200)
    for measure in ("longest", "share", "verbatim", "nearest_similarity"):
        excess = estimate(found, "excess", measure)
        assert excess["low"] <= 0 <= excess["high"]
    assert estimate(found, "references", "longest")["value"] > 2, "references share formulas too: that is the floor"


def test_a_model_that_writes_the_references_is_at_its_floor_exactly(training):
    references = [narrative(random.Random(seed)) for seed in range(20)]
    found = memorisation(predictions_of(references, references), training, embed=embed, resamples=100)
    for measure in ("longest", "share", "verbatim", "nearest_similarity"):
        excess = estimate(found, "excess", measure)
        assert (excess["value"], excess["low"], excess["high"]) == (0, 0, 0)
    assert estimate(found, "predictions", "similarity")["value"] == pytest.approx(1)


def test_a_copied_half_covers_half(training):
    halves = [" ".join([*text.split()[:6], *["fresh"] * 6]) for text in training[:20]]
    found = memorisation(predictions_of(halves), training, embed=None, resamples=100)
    assert (found.examples["longest"] >= 6).all()
    assert found.examples["share"].mean() == pytest.approx(0.5, abs=0.05)
    assert found.examples["verbatim"].sum() == 0
    assert "similarity" not in found.summary["measure"].to_list()


def test_a_blank_prediction_shares_nothing(training):
    found = memorisation(predictions_of([" ", training[0]]), [*training, "…"], embed=None, resamples=100)
    assert found.examples.select("words", "longest", "share", "verbatim", "shared", "source").row(0) == (
        *(0, 0, 0, 0),
        "",
        None,
    )


def test_neither_the_order_of_training_narratives_nor_repeats_matter(training):
    said = predictions_of([narrative(random.Random(seed), 20) for seed in range(10)])
    one = memorisation(said, training, embed=embed, resamples=100)
    other = memorisation(said, [*reversed(training), *training[:5], " "], embed=embed, resamples=100)
    assert one.examples.equals(other.examples)
    assert one.summary.equals(other.summary)


def test_features_are_summarised_apart(training):
    rng = random.Random(3)
    copied = predictions_of(training[:10], feature="a")
    fresh = predictions_of([narrative(rng) for _ in range(10)], feature="b")
    found = memorisation(pl.concat([copied, fresh]), training, embed=None, resamples=100)
    verbatim = found.summary.filter((pl.col("of") == "predictions") & (pl.col("measure") == "verbatim"))
    assert dict(verbatim.select("feature", "value").iter_rows()) == {"a": 1.0, "b": 0.0}


def test_without_a_training_narrative_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="no training narrative"):
        memorisation(predictions_of(["a"]), ["", " "], embed=None, resamples=100)


def test_nearest_similarity_is_the_largest_cosine():
    rng = np.random.default_rng(0)
    texts, corpus = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (rng.normal(size=(n, 8)) for n in (1500, 7)))
    np.testing.assert_allclose(nearest_similarity(texts, corpus), [(corpus @ text).max() for text in texts])


def test_many_narratives_take_seconds():
    """200 x 2,000 of 100 words; 10,000 x 100,000 took 70 s on two busy cores."""
    words = np.array([f"w{number}" for number in range(5000)])
    rng = np.random.default_rng(0)
    corpus = [" ".join(row) for row in words[rng.integers(5000, size=(2000, 100))]]
    copied = [text.split()[:length] for text, length in zip(corpus, rng.integers(1, 100, 200), strict=False)]
    texts = [" ".join([*copy, *["own"] * (100 - len(copy))]) for copy in copied]
    started = time.process_time()
    found = longest_shared_ngrams(texts, corpus)
    assert time.process_time() - started < 5
    assert (found.length >= [len(copy) for copy in copied]).all()
