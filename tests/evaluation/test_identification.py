"""Identification: own references are found, other users' and constant texts score at chance, on made and real texts."""

import gzip
import itertools

import numpy as np
import polars as pl
import pytest

from regen.evaluation.controls import shuffled
from regen.evaluation.identification import chance
from regen.evaluation.prediction_files import read_predictions
from regen.evaluation.scoring import ScoringOptions, score_predictions
from regen.evaluation.text_metrics import METRICS, metrics_for, score_examples

USERS = 60
QUICK = ScoringOptions(resamples=200)


def embed(texts):
    """A random direction for each text; a blank one has none."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=16) * bool(text.strip()) for text in texts]
    vectors = np.stack(rows)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def frame(predictions, references=None, **columns):
    count = len(predictions)
    return pl.DataFrame(
        {
            "user_id": [f"u{at}" for at in range(count)],
            "feature": "f",
            "item_id": pl.Series([None] * count, dtype=pl.String),
            "prediction": predictions,
            "reference": references or [f"text {at}" for at in range(count)],
            **columns,
        }
    )


def scored(predictions, **more):
    examples = score_examples(predictions, embed=embed, **more)
    sums = {
        name: examples.select(metric.columns).sum().to_numpy()[0]
        for name, metric in METRICS.items()
        if set(metric.columns) <= set(examples.columns)
    }
    return {name: float(METRICS[name].aggregate(total)) for name, total in sums.items() if "identified" in name}


OWN = frame([f"text {at}" for at in range(USERS)])


def test_own_references_are_always_identified():
    assert scored(OWN) == {"identified_10": 1, "identified_50": 1, "identified_reciprocal_rank": 1}


@pytest.mark.parametrize("text", ["the same for all", "text 7", " "])
def test_a_constant_text_is_exactly_at_chance(text):
    values = scored(OWN.with_columns(prediction=pl.lit(text)))
    assert values["identified_10"] == pytest.approx(1 / 10, abs=1e-12)
    assert values["identified_50"] == pytest.approx(1 / 50, abs=1e-12)
    assert values["identified_reciprocal_rank"] == pytest.approx(chance("reciprocal_rank", USERS), abs=1e-12)


def test_texts_that_have_nothing_to_do_with_the_users_are_at_chance():
    values = [
        scored(OWN.with_columns(prediction=pl.Series([f"{at} {turn}" for at in range(USERS)]))) for turn in range(8)
    ]
    mean = {name: np.mean([value[name] for value in values]) for name in values[0]}
    assert mean["identified_10"] == pytest.approx(0.1, abs=0.03)
    assert mean["identified_50"] == pytest.approx(0.02, abs=0.012)


def test_own_references_shuffled_are_below_chance_because_each_names_another_candidate():
    values = scored(shuffled(OWN))
    assert 0.05 < values["identified_10"] < 0.1


def test_a_constant_is_at_chance_where_references_are_templates():
    templates = frame(["one"] * USERS, [f"text {at % 4}" for at in range(USERS)])
    assert scored(templates)["identified_10"] == pytest.approx(0.1, abs=1e-12)
    own = scored(templates.with_columns(prediction="reference"))
    assert 0.1 < own["identified_10"] < 0.5  # a quarter of the candidates ties with the own reference


def test_it_is_the_mean_over_all_sets_of_users():
    users = 12
    predictions = frame([f"text {at % 5}" for at in range(users)], [f"text {at % 7}" for at in range(users)])
    similarity = np.round(embed(predictions["prediction"].to_list()) @ embed(predictions["reference"].to_list()).T, 5)
    expected = []
    for own in range(users):
        won = []
        for others in itertools.combinations([at for at in range(users) if at != own], 9):
            of_set = similarity[own, [own, *others]]
            won.append((of_set[0] == of_set.max()) / (of_set == of_set.max()).sum())
        expected.append(np.mean(won))
    examples = score_examples(predictions, embed=embed)
    np.testing.assert_allclose(examples["identified_10"], expected)
    assert "identified_50" not in examples.columns  # more than there are users


def test_candidates_are_those_of_all_users_for_a_part_of_them():
    whole = score_examples(OWN.with_columns(prediction=pl.col("prediction").shift(1).fill_null("")), embed=embed)
    part = OWN.with_columns(prediction=pl.col("prediction").shift(1).fill_null(""))[20:]
    names = ["identified_10", "identified_50", "identified_all", "identified_reciprocal_rank"]
    assert score_examples(part, embed=embed, candidates=OWN).select(names).equals(whole[20:].select(names))


def test_several_texts_of_a_user_do_not_compete():
    twice = pl.concat([OWN, OWN.with_columns(pl.col("prediction", "reference") + " again")])
    assert scored(twice)["identified_50"] == 1
    other = twice.with_columns(prediction=pl.lit("the same"))
    assert scored(other)["identified_10"] == pytest.approx(0.1, abs=1e-12)


def test_items_are_compared_within_their_category():
    items = [f"i{at}" for at in range(USERS)]
    category = ["pens"] * 20 + ["lamps"] * 36 + ["rare"] * 4
    about = OWN.with_columns(item_id=pl.Series(items), category=pl.Series(category))
    examples = score_examples(about, embed=embed)
    assert examples["identified_item_10_of"].to_list() == [1] * 56 + [0] * 4
    assert scored(about)["identified_item_10"] == 1
    of_category = {"pens": "text 3", "lamps": "text 30", "rare": "text 58"}  # knows the category, not the item
    kind = about.with_columns(prediction=pl.col("category").replace_strict(of_category))
    assert scored(kind)["identified_item_10"] == pytest.approx(0.1, abs=1e-12)
    assert scored(kind)["identified_10"] > 0.1


def test_too_few_users_have_no_row():
    assert scored(OWN[:9]).keys() == {"identified_reciprocal_rank"}
    assert not scored(OWN[:1])
    assert "identified_all" in metrics_for(score_examples(OWN[:9], embed=embed).columns)


@pytest.mark.real_data
def test_published_predictions_of_xrec_are_apart_from_shuffled_and_constant_ones(tmp_path, real_data):
    from regen.embeddings.content import embed_texts

    with gzip.open(real_data / "xrec_amazon" / "predictions.jsonl.gz", "rt") as lines:
        path = tmp_path / "some.jsonl"
        path.write_text("".join(itertools.islice(lines, 600)))
    scores = score_predictions(read_predictions(path), tmp_path, embed=embed_texts, options=QUICK)["narrative"]
    for name, at_chance in (("identified_10", 0.1), ("identified_50", 0.02)):
        model, others, constant = (scores[name][system] for system in ("model", "shuffled", "constant"))
        assert model["low"] > 3 * at_chance
        assert others["low"] < at_chance < others["high"]
        assert constant["low"] < at_chance < constant["high"]
