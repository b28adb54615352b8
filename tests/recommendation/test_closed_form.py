"""The next item by a formula."""

import numpy as np
import pytest
import torch

from regen.models.closed_form import ClosedForm, recency_means
from regen.models.closed_form_file import read_closed_form, write_closed_form

OPTIONS = {"decay": 0.5, "ridge": 1e-3, "item_ridge": 1e-3}


def world(users, *, seed=0, items=12, width=8):
    """Items in a ring: who bought number n buys number n + 1 next."""
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(items, items)))[0][:, :width].astype(np.float32)
    starts = np.random.default_rng(seed).integers(items, size=users)
    bought = [(start + np.arange(5)) % items for start in starts]
    return vectors, [(vectors[row[:-1]], None, row[1:]) for row in bought]


def fitted(vectors, histories, folds, **options):
    form = ClosedForm(vectors, np.ones(len(vectors), dtype=np.int64), **OPTIONS | options)
    form.fit(histories, folds)
    return form


def test_recency_means_are_those_of_a_hand():
    means = recency_means(np.array([[1.0], [3.0], [5.0]]), 0.5)
    np.testing.assert_allclose(means[:, 0], [1, (0.5 * 1 + 3) / 1.5, (0.25 * 1 + 0.5 * 3 + 5) / 1.75], rtol=1e-6)


def test_it_finds_a_rule_that_is_linear():
    vectors, histories = world(60, width=12)
    form = fitted(vectors, histories, [0, 1] * 30, decay=0.01)
    unseen = world(20, seed=1, width=12)[1]
    for history, _, targets in unseen:
        scores = form.queries(history) @ vectors.T
        assert scores[-1].argmax() == targets[-1]


def test_the_last_purchase_can_be_read_apart_from_the_mean():
    """Two purchases in an order: the mean is the same for both orders, the next item is not."""
    vectors = np.eye(4, dtype=np.float32)
    orders = {(0, 1): 2, (1, 0): 3}
    histories = [(vectors[list(order)], None, np.array([order[1], item])) for order, item in orders.items()] * 30
    scores = {
        last: [
            fitted(vectors, histories, [0, 1] * 30, decay=1.0, last_apart=last).queries(vectors[list(order)])[-1]
            for order in orders
        ]
        for last in (False, True)
    }
    assert np.allclose(*scores[False])
    assert [int(query[2:].argmax()) + 2 for query in scores[True]] == list(orders.values())


def test_a_fold_is_the_fit_without_its_users():
    vectors, histories = world(30)
    folds = [0, 1, 2] * 10
    form = fitted(vectors, histories, folds)
    others = [one for one, fold in zip(histories, folds, strict=True) if fold != 1]
    without = fitted(vectors, others, [0, 1] * 10)
    history = histories[0][0]
    np.testing.assert_allclose(form.queries(history, fold=1), without.queries(history), rtol=1e-3, atol=1e-4)
    assert np.abs(form.queries(history, fold=1) - form.queries(history)).max() > 1e-4


@pytest.mark.parametrize("helps", [True, False])
def test_popularity_enters_where_it_helps(helps):
    """With queries that say nothing popularity helps if what sold most is bought next, else it does not."""
    vectors, _ = world(1)
    counts = np.arange(12) * 10
    form = ClosedForm(vectors, counts, **OPTIONS)
    wanted = np.array([11, 11, 10, 11, 9] * 10) if helps else np.array([0, 1, 0, 2, 1] * 10)
    form.fit([(np.zeros((1, 8), dtype=np.float32), None, np.array([0]))] * 4, [0, 1] * 2)
    form.calibrate([(np.zeros((1, 8), dtype=np.float32), None)] * 50, wanted, [np.empty(0, dtype=np.int64)] * 50)
    if helps:
        assert form.bias.argmax() == 11
    else:
        assert form.popularity <= 0


def test_the_scale_makes_scores_as_sure_as_they_are_right():
    vectors, histories = world(200, width=12)
    form = fitted(vectors, histories, [0, 1] * 100)
    read = [(history, None) for history, *_ in histories]
    sharp = np.stack([form.queries(history)[-1] for history, _ in read])
    wanted = np.array([targets[-1] for *_, targets in histories])

    def loss(scale):
        scores = torch.from_numpy(scale * sharp @ vectors.T) + form.bias
        return float(torch.nn.functional.cross_entropy(scores, torch.from_numpy(wanted)))

    noisy = np.random.default_rng(0).permutation(200)[:60]
    wanted[noisy] = np.random.default_rng(1).integers(12, size=60)  # now it is right in two of three
    form.calibrate(read, wanted, [np.empty(0, dtype=np.int64)] * 200)
    assert loss(form.scale) < min(loss(form.scale / 2), loss(form.scale * 2))


def test_vectors_that_say_nothing_do_not_break_it():
    form = fitted(
        np.zeros((4, 3), dtype=np.float32),
        [(np.zeros((2, 3), dtype=np.float32), None, np.array([1, 2]))] * 4,
        [0, 1] * 2,
    )
    form.calibrate([(np.zeros((2, 3), dtype=np.float32), None)] * 2, np.array([1, 2]), [np.array([0])] * 2)
    assert np.isfinite(form.queries(np.zeros((1, 3), dtype=np.float32))).all()
    assert form.bias.isfinite().all()


def test_what_was_said_tells_items_apart_that_a_history_does_not():
    """Every history is the same; the next item is the one that was named."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 6)).astype(np.float32)
    wanted = rng.integers(6, size=90)
    histories = [(vectors[:1], np.eye(6, dtype=np.float32)[[item]], np.array([item])) for item in wanted]
    form = fitted(vectors, histories, [0, 1, 2] * 30)
    found = [
        int((form.queries(vectors[:1], np.eye(6, dtype=np.float32)[[item]]) @ vectors.T).argmax()) for item in range(6)
    ]
    assert found == list(range(6))
    silent = form.queries(vectors[:1], np.zeros((1, 6), dtype=np.float32)) @ vectors.T
    assert silent.max() < 0.5


@pytest.mark.parametrize(("folds", "last_apart"), [(True, False), (False, True)])
def test_a_file_keeps_everything_that_queries_need(tmp_path, folds, last_apart):
    vectors, histories = world(30)
    form = fitted(vectors, histories, [0, 1, 2] * 10, last_apart=last_apart)
    form.scale, form.said_scale, form.popularity = 0.3, 0.7, 0.01
    write_closed_form(form, tmp_path / "form", folds=folds, made_from="a")
    read = read_closed_form(tmp_path / "form", vectors, form.bought, made_from="a")
    history = histories[0][0]
    for fold in (None, 0, 2) if folds else (None,):
        assert np.array_equal(read.queries(history, fold=fold), form.queries(history, fold=fold))
    assert torch.equal(read.bias, form.bias)
    write_closed_form(read, tmp_path / "again", folds=folds, made_from="a")
    assert read_closed_form(tmp_path / "again", vectors, form.bought, made_from="a").solved(folds=True).keys() == (
        {None, 0, 1, 2} if folds else {None}
    )


def test_a_file_of_something_else_is_refused(tmp_path):
    vectors, histories = world(30)
    form = fitted(vectors, histories, [0, 1, 2] * 10)
    write_closed_form(form, tmp_path / "form", folds=True, made_from="a")
    with pytest.raises(ValueError, match="form: fitted on other data or with other settings"):
        read_closed_form(tmp_path / "form", vectors, form.bought, made_from="b")
    with pytest.raises(ValueError, match="form: does not fit item vectors of width 4"):
        read_closed_form(tmp_path / "form", vectors[:, :4], form.bought, made_from="a")
