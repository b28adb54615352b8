"""The world's signal is planted as described: texts carry traits, co-purchases the need, and neither the other."""

import re
from collections import Counter

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2_contingency

from regen.data.synthetic import SyntheticSource
from regen.data.synthetic_text import LEXICON, NARRATIVES, TRAITS, Lexicon
from regen.data.tables import FEATURES
from regen.data.validation import validate
from regen.evaluation.recovery import recovery_columns

VERTICALS = sorted(path.stem for path in LEXICON.glob("*.yaml"))
SIZE = {"users": 3000, "narrated_users": 400, "items": 800, "needs": 8, "purchases": 8, "need_share": 0.9, "seed": 0}


@pytest.fixture(scope="module", params=VERTICALS)
def world(request):
    source = SyntheticSource(vertical=request.param, **SIZE)
    return Lexicon.load(request.param), source.read()[0]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def test_deterministic_and_different_by_seed():
    one, same, other = (SyntheticSource(vertical="office", **{**SIZE, "seed": seed}).read()[0] for seed in (0, 0, 1))
    assert one.items.equals(same.items)
    assert one.interactions.equals(same.interactions)
    assert one.narratives.equals(same.narratives)
    assert not one.interactions.equals(other.interactions)


def test_passes_the_checks_of_other_sources(world):
    _, tables = world
    checked, counts = validate(tables, on_bad_row="error", origin="synthetic")
    assert len(checked.interactions) == len(tables.interactions)
    assert counts["narratives.kept"] == 6 * SIZE["narrated_users"]
    assert set(tables.narratives["feature"]) == set(FEATURES)


def test_no_item_text_or_review_holds_a_word_of_a_need(world):
    lexicon, tables = world
    said: set[str] = set()
    for column in ("title", "description", "category", "brand"):
        said |= set().union(*map(words, tables.items[column].unique()))
    for column in ("review_title", "review_text"):
        said |= set().union(*map(words, tables.interactions[column].unique()))
    filler = {"a", "life", "days", "long"}
    needs = set().union(*(words(form) for forms in lexicon.needs.values() for form in forms)) - filler
    assert said & needs == set()


def test_forms_tell_values_apart(world):
    lexicon, _ = world
    forms = [form for label in ("need", *TRAITS) for of in lexicon.forms(label).values() for form in of]
    assert max(Counter(forms).values()) == 1
    for form in forms:
        others = [other for other in forms if other != form and re.search(rf"\b{re.escape(form)}\b", other)]
        assert others == [], f"{form!r} is part of {others}"
    fixed = " ".join(re.sub(r"\{\w+\}", " ", text) for texts in NARRATIVES.values() for text in texts).lower()
    assert [form for form in forms if re.search(rf"\b{re.escape(form)}\b", fixed)] == []


def test_every_narrative_names_its_planted_values_and_no_other(world):
    _, tables = world
    named = tables.narratives.with_columns(prediction=pl.col("text"), reference=pl.col("text"))
    columns = recovery_columns(named, tables.planted)
    assert columns["recovery_need_right"] == columns["recovery_need_named"] == [1.0] * len(named)
    assert columns["recovery_category_right"] == [1.0] * len(named)
    for label in TRAITS:
        assert columns[f"recovery_{label}_right"] == columns[f"recovery_{label}_named"]


def test_need_does_not_depend_on_the_traits_of_what_was_bought(world):
    _, tables = world
    need = dict(tables.planted.filter(pl.col("label") == "need").select("user_id", "value").iter_rows())
    bought = tables.interactions.filter(pl.col("user_id").is_in(list(need))).join(tables.items, on="item_id")
    latest = bought.group_by("user_id", maintain_order=True).last()
    for trait in ("category", "brand"):
        table = Counter((need[user], value) for user, value in latest.select("user_id", trait).iter_rows())
        rows, columns = sorted({key[0] for key in table}), sorted({key[1] for key in table})
        counts = np.array([[table[row, column] for column in columns] for row in rows])
        assert chi2_contingency(counts).pvalue > 0.001


def test_what_is_bought_together_depends_on_the_need(world):
    _, tables = world
    need = dict(tables.planted.filter(pl.col("label") == "need").select("user_id", "value").iter_rows())
    bought = tables.interactions.filter(pl.col("user_id").is_in(list(need)))
    by_item: dict[str, Counter] = {}
    for user, item in bought.select("user_id", "item_id").iter_rows():
        by_item.setdefault(item, Counter())[need[user]] += 1
    often = [counts for counts in by_item.values() if counts.total() >= 5]
    assert np.mean([counts.most_common(1)[0][1] / counts.total() for counts in often]) > 0.8


def test_texts_do_not_identify_items(world):
    _, tables = world
    repeated = tables.items.group_by("title").len()
    assert (repeated["len"] > 1).mean() > 0.5


def test_some_purchases_fall_on_one_day(world):
    _, tables = world
    same_day = tables.interactions.group_by("user_id", "timestamp").len()
    assert 0.02 < (same_day["len"] > 1).mean() < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertical": "ofice"}, "vertical=ofice: .*Did you mean 'office'"),
        ({"users": 0}, "source.narrated_users=400 has to be 1 to source.users=0"),
        ({"narrated_users": 4000}, "source.narrated_users=4000 has to be 1 to source.users=3000"),
        ({"needs": 9}, "source.needs=9 has to be 1 to 8"),
        ({"items": 3}, "source.items=3 has to be at least source.needs=8"),
        ({"need_share": 1.5}, "source.need_share=1.5 has to be 0 to 1"),
        ({"purchases": 0}, "source.purchases=0 has to be at least 1"),
    ],
)
def test_sizes_that_make_no_world(change, message):
    with pytest.raises(ValueError, match=message):
        SyntheticSource(**{"vertical": "office", **SIZE, **change})
