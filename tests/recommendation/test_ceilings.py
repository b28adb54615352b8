"""What a perfect reader would reach in the synthetic world, and how near to it a recommender comes."""

import json

import numpy as np
import pytest

from regen.data.critiques import critique
from regen.data.next_item import catalogue_rows, purchase_sequences
from regen.data.prepare import load_tables
from regen.data.synthetic import SyntheticSource
from regen.evaluation.ceilings import ceilings, expected_statistics
from regen.pipeline import prepared_artefact, train_and_evaluate

WORLD = {
    "vertical": "office",
    "users": 600,
    "narrated_users": 10,
    "items": 96,
    "needs": 4,
    "purchases": 6,
    "need_share": 0.9,
}


def test_the_truth_is_that_of_the_tables():
    source = SyntheticSource(**WORLD, seed=3)
    truth, tables = source.truth(), source.read()[0]
    need_of_item = dict(zip(truth.item_ids, truth.need_of_item.tolist(), strict=True))
    assert set(need_of_item) == set(tables.items["item_id"])
    served = [
        need_of_item[item] == truth.need_of_user[user]
        for user, item in tables.interactions.select("user_id", "item_id").iter_rows()
    ]
    assert np.mean(served) == pytest.approx(0.9 + 0.1 / 4, abs=0.03)
    for need in (None, 0, 3):
        assert truth.chances(need).sum() == pytest.approx(1)
    bought = tables.interactions["item_id"].value_counts()
    counts = dict(bought.iter_rows())
    of_need = [counts.get(item, 0) for item in np.array(truth.item_ids)[truth.need_of_item == 1]]
    assert np.corrcoef(of_need, truth.within[truth.need_of_item == 1])[0, 1] > 0.9


def test_expected_statistics_are_the_sums_of_the_likeliest():
    chances = np.array([[0.5, 0.2, 0.1, 0.1, 0.05, 0.05]])
    row = expected_statistics(["u"], ["i"], chances, system="s").row(0, named=True)
    assert row["recall_1"] == pytest.approx(0.5)
    assert row["recall_5"] == pytest.approx(0.95)
    assert row["mrr"] == pytest.approx(0.5 + 0.2 / 2 + 0.1 / 3 + 0.1 / 4 + 0.05 / 5 + 0.05 / 6)


def test_who_knows_more_can_reach_more(small_config):
    """And what a critique names is true of the item that it leads to."""
    cfg = small_config("task=recommend", without="encoder")
    tables = load_tables(prepared_artefact(cfg).path)
    test = purchase_sequences(tables, cfg.split, max_history=50, exclude_bought=True)["test"]
    found = ceilings(
        cfg.source.build().truth(), test, tables.items, catalogue_rows(tables), critiques=True, exclude_bought=True
    )
    cf, said, joint = (frame["recall_10"].mean() for frame in found)
    assert max(cf, said) < joint <= 1
    items = {row["item_id"]: row for row in tables.items.to_dicts()}
    ids = tables.interactions["item_id"].gather(test[0].rows).to_list()
    text = critique(items[ids[-2]], items[ids[-1]])
    words = " ".join(str(items[ids[-1]][name]) for name in ("title", "category", "brand")).lower()
    named = [word for word in text.lower().strip(".?").split() if len(word) > 3 and word in words]
    assert named or "cheaper" in text or "quality" in text


@pytest.mark.slow  # trains three recommenders on a world of 4,000 users
def test_each_recommender_comes_near_to_its_own_ceiling(small_config):
    """CF reads the need, content and critique the traits; what reads nothing stays at popularity."""
    world = [
        "source.users=6000",
        "source.items=1200",
        "cf.model.factors=64",
        "source.needs=8",
    ]

    def scores(*overrides):
        cfg = small_config(
            "task=recommend", "task.train_users=200", *world, *overrides, without=("encoder", "source", "cf")
        )
        folder, _ = train_and_evaluate(cfg)
        found = json.loads((folder / "scores.json").read_text())["next_item"]["recall_50"]
        return {system: value["value"] for system, value in found.items()}

    cf = scores("encoder=cf")
    assert cf["model"] > 0.8 * cf["perfect reader of CF"]
    assert cf["closed form"] > 0.8 * cf["perfect reader of CF"]
    nothing = scores("encoder=none")
    assert nothing["model"] == pytest.approx(nothing["popularity"], abs=0.03)
    told = scores("encoder=cf", "data.critiques=true")
    assert told["model"] < cf["perfect reader of CF"] + 0.1  # CF does not know what a critique names
    both = scores("encoder=both", "data.critiques=true")
    assert both["closed form"] > max(both["perfect reader of CF"], both["perfect reader of the critique"])
    assert both["model"] > 0.8 * both["perfect reader of both"]
