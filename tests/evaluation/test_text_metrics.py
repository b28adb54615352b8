"""Text metrics equal their reference implementations, and recovery is right on cases made by hand."""

import numpy as np
import polars as pl
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from regen.evaluation.text_metrics import METRICS, metrics_for, score_examples

PREDICTIONS = [
    "The user runs a small studio and keeps buying fine liners.",
    "",
    "   ",
    "Bought it.",
    "Größe passt; naïve café — 漢字 and emoji 🎨!",
    "first sentence here.\nsecond sentence follows",
    "the the the the the the",
    "Pens, pens & more pens (12-pack) for $4.99...",
]
REFERENCES = [
    "This user runs a studio; fine liners are bought again and again.",
    "An empty answer has a reference.",
    "So has one of blanks.",
    "Bought it.",
    "Die Größe passt, a naïve café with 漢字.",
    "second sentence follows the first.\nfirst sentence was here",
    "the cat sat on the mat",
    "A 12-pack of pens costs $4.99 and lasts.",
]


def frame(predictions, references, users=None):
    count = len(predictions)
    return pl.DataFrame(
        {
            "user_id": users or [f"u{i}" for i in range(count)],
            "feature": ["f"] * count,
            "item_id": pl.Series([None] * count, dtype=pl.String),
            "prediction": predictions,
            "reference": references,
        }
    )


def random_texts(count, seed):
    """Texts of 0 to 30 words from a small vocabulary, so that n-grams of every order match now and then."""
    generator = np.random.default_rng(seed)
    words = np.array(["pens", "running", "studies", "paper.", "the", "of", "Gift", "cards,", "user", "\n", "it's"])
    return [" ".join(generator.choice(words, generator.integers(0, 30))) for _ in range(count)]


def pairs(name):
    if name == "made by hand":
        return PREDICTIONS, REFERENCES
    return random_texts(60, seed=1), [f"the {text}" for text in random_texts(60, seed=2)]


def value(examples, name):
    metric = METRICS[name]
    return float(metric.aggregate(examples.select(metric.columns).sum().to_numpy()[0]))


def embed(texts):
    """A letter count per text, of unit norm."""
    counts = np.array([[1.0 + text.count(letter) for letter in "aeioubcdrst"] for text in texts])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["made by hand", "random"])
def test_bleu_is_sacrebleu(name):
    predictions, references = pairs(name)
    examples = score_examples(frame(predictions, references), embed=None)
    assert value(examples, "bleu") == pytest.approx(sacrebleu.corpus_bleu(predictions, [references]).score, abs=1e-10)


@pytest.mark.parametrize("row", range(len(PREDICTIONS)))
def test_bleu_of_one_example_is_sacrebleu(row):
    prediction, reference = PREDICTIONS[row], REFERENCES[row]
    examples = score_examples(frame([prediction], [reference]), embed=None)
    expected = sacrebleu.corpus_bleu([prediction], [[reference]]).score
    assert value(examples, "bleu") == pytest.approx(expected, abs=1e-10)


def test_bleu_of_many_resamples_at_once_is_bleu_of_each():
    examples = score_examples(frame(*pairs("random")), embed=None)
    columns = METRICS["bleu"].columns
    rows = np.random.default_rng(0).integers(0, examples.height, size=(3, 5, 4))
    sums = examples.select(columns).to_numpy()[rows].sum(axis=2)
    together = METRICS["bleu"].aggregate(sums)
    for place in np.ndindex(3, 5):
        chosen = [int(row) for row in rows[place]]
        predictions, references = ([texts[row] for row in chosen] for texts in pairs("random"))
        expected = sacrebleu.corpus_bleu(predictions, [references]).score
        assert together[place] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("stemmer", [True, False])
@pytest.mark.parametrize("name", ["made by hand", "random"])
def test_rouge_is_rouge_score(name, stemmer):
    predictions, references = pairs(name)
    examples = score_examples(frame(predictions, references), embed=None, stemmer=stemmer)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=stemmer)
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    for variant in scorer.rouge_types:
        expected = 100 * np.mean([score[variant].fmeasure for score in scores])
        assert value(examples, variant) == pytest.approx(expected, abs=1e-10)


def test_similarity_is_the_mean_cosine():
    examples = score_examples(frame(PREDICTIONS, REFERENCES), embed=embed)
    expected = (embed(PREDICTIONS) * embed(REFERENCES)).sum(axis=1)
    np.testing.assert_allclose(examples["similarity"], expected)
    assert value(examples, "similarity") == pytest.approx(expected.mean())


@pytest.mark.parametrize("scale", [2.0, np.nan])
def test_embeddings_without_unit_norm_are_refused(scale):
    with pytest.raises(ValueError, match="unit norm"):
        score_examples(frame(["a"], ["b"]), embed=lambda texts: scale * embed(texts))


def test_a_blank_prediction_may_have_the_zero_vector_and_nothing_else_may():
    def zero_where(condition):
        return lambda texts: embed(texts) * np.array([[0.0 if condition(text) else 1.0] for text in texts])

    examples = score_examples(frame([" ", "a"], ["b", "a"]), embed=zero_where(lambda text: not text.strip()))
    assert examples["similarity"].to_list() == pytest.approx([0, 1])
    with pytest.raises(ValueError, match="norm 0 for 'a'"):
        score_examples(frame(["a"], ["b"]), embed=zero_where(lambda text: text == "a"))


def test_without_embeddings_there_is_no_similarity():
    examples = score_examples(frame(["a"], ["b"]), embed=None)
    assert "similarity" not in metrics_for(examples.columns)


def test_length_ratio_is_of_sums():
    examples = score_examples(frame(["one two three", ""], ["one", "one two three"]), embed=None)
    assert value(examples, "length_ratio") == 3 / 4


def test_distinct_counts_texts_once_per_feature():
    predictions = frame(["a", "a", "b", "a"], ["r"] * 4).with_columns(feature=pl.Series(["f", "f", "f", "g"]))
    examples = score_examples(predictions, embed=None)
    assert examples["distinct"].to_list() == [0.5, 0.5, 1.0, 1.0]


def planted_rows(user, **values):
    forms = {
        "teach": ["home school", "home-schooling"],
        "ship": ["parcels", "shipping"],
        "blue": ["blue"],
        "navy": ["navy blue", "navy"],
        "cheap": ["cheap"],
    }
    return [{"user_id": user, "label": label, "value": v, "forms": forms[v]} for label, v in values.items()]


PLANTED = pl.DataFrame(
    [*planted_rows("u0", need="teach", colour="blue", price="cheap"), *planted_rows("u1", need="ship", colour="navy")]
)


@pytest.mark.parametrize(
    ("prediction", "need", "colour"),
    [
        ("They HOME  School, with blue pens.", 1, 1),
        ("Home-schooling and blue.", 1, 1),
        ("Bluebells at the home schools.", 0, 0),  # parts of words
        ("A home school that ships parcels, in navy blue.", 0, 0),  # names a second need; navy blue is not blue
        ("Parcels in navy.", 0, 0),
        ("", 0, 0),
    ],
)
def test_recovery_needs_exactly_the_right_value(prediction, need, colour):
    predictions = frame([prediction], ["Runs a home school and likes blue."], users=["u0"])
    examples = score_examples(predictions, embed=None, planted=PLANTED)
    assert examples["recovery_need_right"].item() == need
    assert examples["recovery_colour_right"].item() == colour
    assert value(examples, "need_recovery") == need
    assert value(examples, "trait_recovery") == colour  # the reference does not name the price


def test_only_labels_that_the_reference_names_count():
    examples = score_examples(frame(["Parcels."], ["Navy."], users=["u1"]), embed=None, planted=PLANTED)
    assert examples["recovery_need_named"].item() == 0
    assert examples["recovery_need_right"].item() == 0
    assert np.isnan(value(examples, "need_recovery"))
    assert value(examples, "trait_recovery") == 0


def test_single_labels_are_metrics_beside_the_pooled_ones():
    examples = score_examples(frame(["x"], ["y"], users=["u0"]), embed=None, planted=PLANTED)
    recoveries = [name for name in metrics_for(examples.columns) if "recovery" in name]
    assert recoveries == ["need_recovery", "trait_recovery", "recovery_colour", "recovery_price"]


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (PLANTED.drop("forms"), "no column 'forms'"),
        (pl.concat([PLANTED, PLANTED.head(1)]), "'u0' the label 'need' twice"),
        (PLANTED.filter(pl.col("user_id") == "u1"), "1 predicted users are not in the planted table"),
        (PLANTED.with_columns(forms=pl.lit(["same"])), "names both"),
        (PLANTED.with_columns(forms=pl.lit([" "])), "blank form"),
    ],
)
def test_a_planted_table_that_cannot_be_the_truth_is_refused(planted, message):
    with pytest.raises(ValueError, match=message):
        score_examples(frame(["x"], ["y"], users=["u0"]), embed=None, planted=planted)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (frame([], []), "0 rows"),
        (frame(["a"], ["b"]).drop("item_id"), "no column 'item_id'"),
        (frame([None], ["b"]), "row 1 of the predictions has no prediction"),
        (frame(["a"], [" "]), "references are blank"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(predictions, message):
    with pytest.raises(ValueError, match=message):
        score_examples(predictions, embed=None)
