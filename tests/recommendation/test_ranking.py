"""Ranks, ranking metrics and the recommenders that stand beside ours."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_recall, retrieval_reciprocal_rank

from regen.data.histories import Example
from regen.evaluation.ranking import rank_of, ranking_statistics
from regen.evaluation.recommenders import (
    _als,
    _matrix,
    _neighbours,
    _popularity,
    best_of,
    content_neighbours,
    ranks_by,
)


def test_metrics_are_those_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 100, generator=generator)
    target = torch.randint(100, (40,), generator=generator)
    ranks = rank_of(scores, target).numpy()
    users = [f"u{n}" for n in range(40)]
    found = ranking_statistics(users, users, ranks, np.zeros(40, dtype=bool), system="model")
    right = torch.nn.functional.one_hot(target, 100).bool()
    for row in range(40):
        one = found.row(row, named=True)
        for k in (1, 5, 10, 20, 50):
            assert one[f"recall_{k}"] == float(retrieval_recall(scores[row], right[row], top_k=k))
        assert one["ndcg_10"] == pytest.approx(
            float(retrieval_normalized_dcg(scores[row], right[row].long(), top_k=10))
        )
        assert one["mrr"] == pytest.approx(float(retrieval_reciprocal_rank(scores[row], right[row])))


def test_equal_scores_go_by_the_catalogue():
    scores = torch.tensor([[1.0, 2.0, 1.0, 1.0]]).repeat(3, 1)
    assert rank_of(scores, torch.tensor([0, 2, 3])).tolist() == [2, 3, 4]


def test_what_a_system_did_not_name_is_a_miss_everywhere():
    found = ranking_statistics(["u", "v"], ["a", "b"], np.array([0, 1]), np.array([True, False]), system="theirs")
    assert found["recall_50"].to_list() == found["mrr"].to_list() == found["ndcg_10"].to_list() == [0, 1]
    assert found["cold_examples"].to_list() == [1, 0]
    assert found["cold_recall_10"].to_list() == [0, 0]
    warm = ranking_statistics(["u"], ["a"], np.array([1]), np.array([False]), system="theirs")
    assert "cold_examples" not in warm.columns


ITEMS = 30
RNG = np.random.default_rng(0)
GROUPS = RNG.integers(3, size=400)  # each user buys among ten items
BOUGHT = [10 * group + RNG.permutation(10)[:6] for group in GROUPS]


MADE = {
    "popularity": _popularity,
    "item kNN": lambda train: _neighbours(train, 50, 1.0),
    "ALS": lambda train: _als(train, factors=8, alpha=10.0, iterations=15, regularization=1.0),
}
USERS = [Example(str(n), "next_item", None, "", np.arange(6) + 6 * n, np.ones(6, dtype=bool)) for n in range(100)]
ITEM_OF = np.concatenate(BOUGHT[300:])


@pytest.mark.parametrize(("name", "least"), [("popularity", 0.05), ("item kNN", 0.95), ("ALS", 0.9)])
def test_other_recommenders_find_the_group_of_a_user_they_have_not_met(name, least):
    """Five items of the own group are left to a user, so all of them stand among the first five."""
    recommender = MADE[name](_matrix(BOUGHT[:300], ITEMS, decay=1.0))
    ranks = ranks_by(recommender([row[:-1] for row in BOUGHT[300:]]), USERS, ITEM_OF, exclude_bought=True)
    assert (ranks <= 5).mean() >= least
    if name == "popularity":
        assert (ranks <= 5).mean() < 0.5


def test_the_setting_is_chosen_on_validation_users():
    train = _matrix(BOUGHT[:300], ITEMS, decay=1.0)
    users = {"validation": USERS[:50], "test": USERS[50:]}
    candidates = {"popularity": _popularity(train), "neighbours": MADE["item kNN"](train)}
    chosen, ranks = best_of(candidates, users, ITEM_OF, exclude_bought=True)
    assert chosen == "neighbours"
    assert len(ranks) == 50


def test_content_neighbours_are_near_in_text():
    items = np.eye(ITEMS, dtype=np.float32)[:, : ITEMS // 10 + 1]
    items[np.arange(ITEMS), np.arange(ITEMS) // 10] = 1
    for recommender in content_neighbours(items).values():
        scores = recommender([np.array([1, 2])])(0, 1)[0]
        assert scores[:10].min() > scores[10:].max()


def test_bought_items_are_candidates_where_that_is_asked_for():
    example = [Example("u", "next_item", None, "", np.arange(3), np.ones(3, dtype=bool))]
    item_of = np.array([0, 1, 2])
    score = lambda start, end: np.array([[3.0, 2.0, 1.0]])  # noqa: E731
    assert ranks_by(score, example, item_of, exclude_bought=True).tolist() == [1]
    assert ranks_by(score, example, item_of, exclude_bought=False).tolist() == [3]
