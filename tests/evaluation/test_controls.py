"""Floors: nobody keeps their own prediction, and the constant is the best training narrative."""

import numpy as np
import polars as pl
import pytest
from rouge_score.rouge_scorer import RougeScorer

from regen.evaluation.controls import best_constant, constant, lcs_length, rouge_lsum, shuffled


def predictions(rows_per_user, features=("f",)):
    rows = [
        {"user_id": user, "feature": feature, "item_id": None, "prediction": f"{feature} {user} {k}", "reference": "r"}
        for feature in features
        for user, count in rows_per_user.items()
        for k in range(count)
    ]
    return pl.DataFrame(rows, schema_overrides={"item_id": pl.String})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows_per_user", [{"a": 1, "b": 1}, {"a": 5, "b": 1, "c": 2}, {f"u{i}": 1 for i in range(40)}])
def test_every_prediction_comes_from_another_user_of_the_same_feature(rows_per_user, seed):
    original = predictions(rows_per_user, features=("f", "g"))
    moved = shuffled(original, seed=seed)
    assert moved.drop("prediction").equals(original.drop("prediction"))
    for feature, user, text in moved.select("feature", "user_id", "prediction").iter_rows():
        assert text.split()[0] == feature
        assert text.split()[1] != user
    if max(rows_per_user.values()) == 1:
        assert sorted(moved["prediction"]) == sorted(original["prediction"])


def test_the_shuffle_depends_on_the_seed_alone():
    original = predictions({f"u{i}": 1 for i in range(30)})
    first = shuffled(original, seed=1)
    assert shuffled(original.reverse(), seed=1).reverse().equals(first)
    assert not shuffled(original, seed=2).equals(first)


def test_one_user_cannot_be_shuffled():
    with pytest.raises(ValueError, match="feature 'f' has 1 user"):
        shuffled(predictions({"a": 3}))


def narratives(*texts, feature="f"):
    return pl.DataFrame({"user_id": [str(i) for i in range(len(texts))], "feature": feature, "text": list(texts)})


def test_the_constant_is_the_planted_best_of_each_feature():
    train = pl.concat([
        narratives("nothing in common", "the user likes pens", "odd words only"),
        narratives("the user likes pens", "a brief summary of tastes", feature="g"),
    ])  # fmt: skip
    validation = pl.concat([
        narratives("the user likes red pens", "the user likes ink"),
        narratives("a summary of tastes", "brief tastes", feature="g"),
    ])  # fmt: skip
    test = predictions({"a": 1, "b": 2}, features=("f", "g"))
    chosen = constant(train, validation, test)
    assert set(chosen.filter(pl.col("feature") == "f")["prediction"]) == {"the user likes pens"}
    assert set(chosen.filter(pl.col("feature") == "g")["prediction"]) == {"a brief summary of tastes"}
    assert chosen.drop("prediction").equals(test.drop("prediction"))


@pytest.mark.parametrize(("train", "validation", "split"), [("f", "g", "validation"), ("g", "f", "training")])
def test_a_feature_without_narratives_has_no_constant(train, validation, split):
    with pytest.raises(ValueError, match=f"feature 'f' has 0 {split} narratives"):
        constant(narratives("x", feature=train), narratives("x", feature=validation), predictions({"a": 1}))


def test_the_sample_does_not_depend_on_the_order_of_texts():
    texts = [f"word{i % 7} word{i % 5} word{i % 3} number {i}" for i in range(60)]
    chosen = best_constant(texts, texts, sample=20, seed=4)
    assert best_constant(texts[::-1], texts[::-1], sample=20, seed=4) == chosen


@pytest.mark.parametrize("stemmer", [True, False])
def test_the_fast_lsum_is_rouge_scores(stemmer):
    generator = np.random.default_rng(0)
    words = np.array(["pens", "running", "runs", "studies", "the", "of", "\n", "Ärger", "it's", "42"])
    texts = ["", " ", "\n", *(" ".join(generator.choice(words, generator.integers(1, 90))) for _ in range(60))]
    scorer = RougeScorer(["rougeLsum"], use_stemmer=stemmer)
    one_line = [text.replace("\n", "") for text in texts]
    for left, right in [*zip(texts, texts[::-1], strict=True), *zip(one_line, one_line[::-1], strict=True)]:
        expected = scorer.score(left, right)["rougeLsum"].fmeasure
        assert rouge_lsum(left, right, stemmer=stemmer) == pytest.approx(expected, abs=1e-12)


def test_lcs_by_hand():
    assert lcs_length("abcbdab", "bdcaba") == 4
    assert lcs_length("", "abc") == lcs_length("abc", "") == lcs_length("abc", "xyz") == 0
