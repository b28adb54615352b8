"""Narratives by rules: always the same for the same rows, always something to read, never more than the rows say."""

import random
import re
from dataclasses import replace

import polars as pl
import pytest

from regen.data.tables import FEATURES, ITEM_FEATURES
from regen.narratives import template
from regen.narratives.histories import Purchase, UserHistory
from regen.narratives.narrate import narrate
from regen.narratives.narrators import NARRATED, TemplateNarrator

DAY = 86_400


def purchase(at=0, **known):
    empty = dict.fromkeys(Purchase.__dataclass_fields__)
    return Purchase(**empty | {"item_id": f"i{at}", "timestamp": at * DAY, "title": f"Thing {at}"} | known)


def made_up(seed):
    """A history of one to seven purchases of which any field but the title may be missing."""
    chance = random.Random(seed)

    def one(at):
        fields = {
            "item_id": f"i{chance.randrange(6)}",
            "title": chance.choice(["Pen", "Steel {ruler} $5", "Word " * 30, "Ruler" * 20, "Naïve 本"]),
            "timestamp": DAY * at,
            "description": "A described thing.",
            "category": chance.choice(["Office - Pens", "Rulers", "Home - Desk - Lamps"]),
            "brand": chance.choice(["Ax", "Bo & Co.", "{brand}"]),
            "price": chance.uniform(0, 500),
            "rating": float(chance.randint(1, 5)),
            "review_title": "zqtitle",
            "review_text": f"zqword {seed} {at}",
        }
        lost = [name for name in fields if name not in ("item_id", "title") and chance.random() < 0.4]
        return Purchase(**fields | dict.fromkeys(lost))

    return UserHistory(f"u{seed}", tuple(one(at) for at in range(chance.randint(1, 7))))


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_any_history_gets_six_texts_that_rest_on_it(start):
    for seed in range(start, start + 100):
        history = made_up(seed)
        texts = template.narrate(history)
        assert texts == template.narrate(made_up(seed))
        assert sorted(texts) == sorted(FEATURES)
        earlier, final = history.purchases[:-1], history.final
        related = any(
            one.item_id == final.item_id
            or (one.brand and one.brand == final.brand)
            or (one.category and one.category == final.category)
            for one in earlier
        )
        assert (texts["purchase_reason"] is not None) == related
        for feature, text in texts.items():
            if feature != "purchase_reason" or related:
                assert text == text.strip() != ""
                assert not re.search(r"\bNone\b|  |zqword|zqtitle|\bnan\b|\{(name|relation)\}", text), text


@pytest.mark.parametrize(
    "review",
    [
        {"rating": 1.0},
        {"rating": 5.0, "review_text": "Wonderful, best I ever had", "review_title": "Wow"},
        {"rating": None, "review_text": None, "review_title": None},
    ],
    ids=str,
)
def test_the_pitch_does_not_know_the_final_review(review):
    for history in map(made_up, range(100)):
        if history.without_final_review().purchases[:-1] != history.purchases[:-1]:
            continue  # copies of the final review go with it
        other = replace(history, purchases=(*history.purchases[:-1], replace(history.final, **review)))
        pitch = template.narrate(history)["product_endorsement"]
        assert template.narrate(other)["product_endorsement"] == pitch
        assert template.narrate(history.without_final_review())["product_endorsement"] == pitch


@pytest.mark.parametrize(
    ("earlier", "final", "reason"),
    [
        ([], {}, None),
        ([purchase(0, brand="Ax", category="Pens")], {"brand": "Bo", "category": "Rulers"}, None),
        ([purchase(0)], {}, None),
        ([purchase(9), purchase(9)], {"brand": "Ax"}, "again, after 2 earlier purchases of it"),
        ([purchase(0, brand="Ax"), purchase(1)], {"brand": "Ax", "category": "Pens"}, "to go with 1 earlier purchase from Ax"),
        ([purchase(0, category="Office - Pens")], {"brand": "Ax", "category": "Office - Pens"}, "to go with 1 earlier purchase of Pens"),
    ],
)  # fmt: skip
def test_reasons_are_what_came_before_or_null(earlier, final, reason):
    text = template.narrate(UserHistory("u1", (*earlier, purchase(9, **final))))["purchase_reason"]
    assert text is None if reason is None else text.endswith(f"{reason}.")
    assert text is None or "Thing 9" in text


def test_texts_say_what_is_bought_most_and_how_it_is_rated():
    bought = [
        purchase(0, category="Office - Pens", brand="Ax", rating=5.0, price=2.0),
        purchase(1, category="Office - Pens", brand="Bo", rating=2.0, price=4.0),
        purchase(2, category="Rulers", brand="Ax", rating=5.0),
    ]
    texts = template.narrate(UserHistory("u1", tuple(bought)))
    assert texts["user_profile"] == "Content buyer of Pens"
    assert texts["brief_user_summary"] == (
        "This customer made 3 purchases, mostly Pens from Ax. They give 4.0 stars on average."
    )
    for said in ("about 3 dollars", "rated best is Thing 2", "Less liked was Thing 1", "latest purchase is Thing 2"):
        assert said in texts["long_user_summary"]
    assert "Thing 2" in texts["product_endorsement"]
    assert "rated best is Thing 0" in texts["product_endorsement"]


def test_wordings_differ_between_users():
    pair = (purchase(0, brand="Ax"), purchase(1, brand="Ax"))
    texts = [template.narrate(UserHistory(f"u{user}", pair)) for user in range(50)]
    assert len({text["purchase_reason"] for text in texts}) == len({text["product_endorsement"] for text in texts}) == 3


def test_narratives_are_written_beside_the_rows_they_come_from(prepared, tmp_path):
    def written(**options):
        return narrate(
            TemplateNarrator(), prepared=data, root=tmp_path / "data", **{"max_history": 50, "users": None} | options
        )

    data = prepared(12)
    artefact = written()
    narratives = pl.read_parquet(artefact.path / "narratives.parquet")
    assert narratives.schema == NARRATED
    assert narratives.group_by("feature").len().sort("feature").rows() == [(name, 12) for name in sorted(FEATURES)]
    about = narratives.with_columns(known=pl.col("feature").is_in(ITEM_FEATURES))
    for user, item, timestamp, known in about.select("user_id", "item_id", "timestamp", "known").iter_rows():
        assert (item, timestamp) == ((f"i{(int(user[1:]) + 1) % 5}", DAY) if known else (None, None))
    assert narratives.select("narrator", "model", "prompt", "sampling", "written").unique().rows() == [
        ("template", f"template {template.VERSION}", None, None, None)
    ]
    assert narratives.filter(feature="purchase_reason")["text"].null_count() == 0
    for name in ("items", "interactions"):
        assert pl.read_parquet(artefact.path / f"{name}.parquet").equals(pl.read_parquet(data.path / f"{name}.parquet"))
    assert pl.read_parquet(artefact.path / "failures.parquet").is_empty()
    counts = artefact.manifest["counts"]
    assert (counts["users"], counts["narratives"], counts["narratives.null"], counts["failures"]) == (12, 72, 0, 0)
    assert (written().path, written().manifest) == (artefact.path, artefact.manifest)
    some = written(users=5)
    assert some.path != artefact.path
    few = pl.read_parquet(some.path / "narratives.parquet")
    assert few.equals(narratives.filter(pl.col("user_id").is_in(few["user_id"].unique().implode())))
    alone = pl.read_parquet(written(max_history=1).path / "narratives.parquet")
    assert alone.filter(feature="purchase_reason")["text"].null_count() == 12


@pytest.mark.parametrize("options", [{"users": 0}, {"users": -1}, {"max_history": 0}], ids=str)
def test_numbers_that_leave_nobody_are_refused(prepared, tmp_path, options):
    with pytest.raises(ValueError, match="{}={}".format(*next(iter(options.items())))):
        narrate(
            TemplateNarrator(),
            prepared=prepared(3),
            root=tmp_path / "data",
            **{"max_history": 50, "users": None} | options,
        )
    assert not list((tmp_path / "data").glob("narrated-*"))
