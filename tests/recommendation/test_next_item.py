"""Examples, model and loss of task=recommend."""

from itertools import chain

import numpy as np
import polars as pl
import pytest
import torch

from regen.config.schema import UsersSplit
from regen.data.next_item import NextItemDataset, drawn_by_popularity, purchase_sequences
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, DataError, Tables
from regen.embeddings.fusion import CFVectors
from regen.models.adapter import LinearAdapter
from regen.models.language_model import tune_fully
from regen.models.next_item import NextItemLM, bought_before
from regen.pipeline import load_folder, train_and_evaluate

SPLIT = UsersSplit(validation=0.2, test=0.2, salt="")


def tables(purchases, titles=("a", "b", "c", "d", None)):
    """Users by name and the numbers of the items that they bought, in order."""
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(len(titles))], "title": list(titles)})
    rows = [(user, f"i{item}", at) for user, bought in purchases.items() for at, item in enumerate(bought)]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    filled = {"items": (items, ITEMS), "interactions": (interactions, INTERACTIONS)}
    made = {
        name: frame.select(
            *(pl.col(c).cast(t) if c in frame.columns else pl.lit(None, dtype=t).alias(c) for c, t in schema.items())
        )
        for name, (frame, schema) in filled.items()
    }
    return Tables(made["items"], made["interactions"], pl.DataFrame(schema=NARRATIVES))


def many(bought):
    """Enough users who all bought the same for every split to have some."""
    return {f"u{number:02}": bought for number in range(40)}


def item_ids(of, example):
    return of.interactions["item_id"].gather(example.rows).to_list()


def test_the_last_purchase_is_what_is_to_be_found():
    of = tables({**many([0, 1, 2]), "u99": [3]})
    found = purchase_sequences(of, SPLIT, max_history=50, exclude_bought=True)
    assert sum(map(len, found.values())) == 40  # one purchase is no example
    for example in chain(*found.values()):
        assert item_ids(of, example) == ["i0", "i1", "i2"]
        assert example.item_id == "i2"
    shorter = purchase_sequences(of, SPLIT, max_history=1, exclude_bought=True)
    assert {tuple(item_ids(of, example)) for example in chain(*shorter.values())} == {("i1", "i2")}


@pytest.mark.parametrize(("exclude", "left"), [(True, ["i0", "i1"]), (False, ["i0", "i1", "i0"])])
def test_a_repeated_purchase_counts_once_where_bought_items_are_excluded(exclude, left):
    of = tables(many([0, 1, 4, 0]))  # item 4 has no title
    found = purchase_sequences(of, SPLIT, max_history=50, exclude_bought=exclude)
    assert {tuple(item_ids(of, example)) for example in chain(*found.values())} == {tuple(left)}


@pytest.mark.parametrize("bought", [[0], [0, 0], [0, 4]], ids=["one purchase", "one item twice", "one title"])
def test_a_catalogue_without_a_second_item_is_refused(bought):
    with pytest.raises(DataError, match="The train split has no user with two purchases of items that have a title"):
        purchase_sequences(tables(many(bought)), SPLIT, max_history=50, exclude_bought=True)


@pytest.fixture
def dataset(tiny_lm):
    """Users with 2 to 6 purchases among ten items, and what makes their batches."""
    rng = np.random.default_rng(0)
    bought = {f"u{n:02}": rng.permutation(10)[: 2 + n % 5].tolist() for n in range(60)}
    of = tables(bought, [f"title {n}" for n in range(10)])
    examples = purchase_sequences(of, SPLIT, max_history=50, exclude_bought=True)["train"]
    item_of = of.interactions["item_id"].str.strip_prefix("i").cast(pl.Int64).to_numpy()
    vectors = CFVectors(rng.normal(size=(10, 6)).astype(np.float32), item_of)

    def queries(history, said, *, fold):
        return (history * (1 if fold is None else fold)).astype(np.float32)

    def made(**options):
        given = {"every": True, "prompt": "next:", "window": 64} | options
        return NextItemDataset(
            examples, vectors, item_of=item_of, queries=queries, tokenizer=tiny_lm.tokenizer, **given
        )

    return made


@pytest.fixture
def model(tiny_lm, dataset):
    torch.manual_seed(0)
    items = torch.from_numpy(dataset().vectors.vectors)
    return NextItemLM(
        tune_fully(tiny_lm.working_copy(trainable=True).model),
        LinearAdapter(6, tiny_lm.width),
        items=items,
        bias=torch.linspace(0, 1, 10),
        exclude_bought=True,
        bos_token_id=tiny_lm.tokenizer.bos_token_id,
    ).eval()


def read_something(model):
    torch.nn.init.normal_(model.readout.weight, std=5)


@torch.no_grad()
def test_it_starts_as_the_closed_form(model, dataset):
    batch = dataset().collate(range(8))
    torch.testing.assert_close(model.queries(batch), batch.queries)
    read_something(model)
    assert (model.queries(batch) - batch.queries).abs().max() > 0.1


@torch.no_grad()
def test_a_query_knows_nothing_of_what_comes_after_it(model, dataset):
    read_something(model)
    batch = dataset().collate(range(8))
    before = model.queries(batch)
    batch.fused[:, 1:] += 1
    after = model.queries(batch)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    longer = batch.history_mask[:, 1]
    assert (after[longer, 1] - before[longer, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_row_is_ranked_alike_alone_and_beside_longer_ones(model, dataset):
    read_something(model)
    data = dataset()
    together, lengths = model.queries(data.collate(range(8))), [len(e.rows) - 1 for e in data.examples]
    assert len(set(lengths[:8])) > 2
    for row in range(8):
        alone = model.queries(data.collate([row]))
        torch.testing.assert_close(alone[0], together[row, : lengths[row]], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_over_what_was_not_bought(model, dataset):
    read_something(model)
    data = dataset()
    total, count = model(data.collate(range(5)))
    expected, found = 0.0, 0
    for row in range(5):
        items, queries = data.items(row), model.queries(data.collate([row]))[0]
        for at, target in enumerate(items[1:]):
            scores = queries[at] @ model.items.T + model.bias
            left = [item for item in range(10) if item not in items[: at + 1]]
            expected += float(scores[left].logsumexp(0) - scores[target])
            found += 1
    assert (int(count), found) == (found, sum(len(data.items(row)) - 1 for row in range(5)))
    assert float(total) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("exclude", [True, False])
def test_a_sampled_loss_has_the_mean_and_the_gradient_of_the_exact_one(model, dataset, exclude, monkeypatch):
    """Over many draws; items that are bought often are drawn more often, and the correction makes up for it."""
    read_something(model)
    model.exclude_bought = exclude
    exact, _ = model(dataset().collate(range(5)))
    exact.backward()
    expected = model.readout.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr("regen.data.next_item.NEGATIVES", 20_000)
    data = dataset(drawn=drawn_by_popularity(np.array([50, 0, 0, 3, 9, 1, 0, 20, 5, 0])))
    batch = data.collate(range(5))
    assert torch.equal(batch.negatives, data.collate(range(5)).negatives)
    assert not torch.equal(batch.negatives, data.collate(range(1, 6)).negatives)
    assert (batch.negatives == 0).float().mean() == pytest.approx(51 / 98, abs=0.02)
    sampled, _ = model(batch)
    sampled.backward()
    assert float(sampled.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    gap = (model.readout.weight.grad - expected).norm() / expected.norm()
    assert gap < 0.05


def test_a_large_catalogue_is_sampled_in_training_alone(small_config, monkeypatch):
    monkeypatch.setattr("regen.training.recommendation.FULL_CATALOGUE", 100)
    monkeypatch.setattr("regen.data.next_item.NEGATIVES", 64)
    config = small_config("task=recommend", "task.decay=1.0", "task.ridge=0.1", "score=false")
    folder, loss = train_and_evaluate(config)
    assert np.isfinite(loss)
    assert np.isfinite(loss)
    splits = load_folder(folder).data.splits
    assert splits["train"].collate([0]).negatives.shape == (64,)
    assert splits["validation"].collate([0]).negatives is None


@torch.no_grad()
def test_scores_are_float32_whatever_the_lm_computes_in(model, dataset):
    batch = dataset().collate(range(3))
    before, _ = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        queries = model.queries(batch)
        scores = model.scores(queries[:, 0], batch.items[:, :1])
        narrow, _ = model(batch)
    assert scores.dtype == torch.float32
    assert float(narrow) == pytest.approx(float(before), rel=1e-2)


def test_every_part_of_it_gets_a_gradient(model, dataset):
    read_something(model)
    total, _ = model.train()(dataset().collate(range(5)))
    total.backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == set()


def test_validation_and_test_ask_for_the_last_purchase_alone(dataset):
    batch = dataset(every=False).collate(range(6))
    assert (batch.targets >= 0).sum(dim=1).tolist() == [1] * 6
    last = batch.history_mask.sum(dim=1) - 1
    assert (batch.targets.gather(1, last[:, None]) >= 0).all()


def test_what_was_bought_before_ends_at_each_purchase(dataset):
    batch = dataset().collate([0, 1])
    before = bought_before(batch)
    for row in range(2):
        for at in range(int(batch.history_mask[row].sum())):
            assert set(before[row, at].tolist()) == set(batch.items[row, : at + 1].tolist())


def test_the_item_to_find_is_in_no_input(dataset):
    data = dataset()
    batch = data.collate([0])
    data.vectors.vectors[data.items(0)[-1]] += 100
    changed = data.collate([0])
    torch.testing.assert_close(changed.fused, batch.fused)
    torch.testing.assert_close(changed.queries, batch.queries)


def test_training_users_meet_a_closed_form_that_has_not_seen_them(dataset):
    data = dataset(fold=[2] * 60)
    batch = data.collate([0])
    torch.testing.assert_close(batch.queries, 2 * batch.fused)


def test_a_history_that_does_not_fit_is_refused(dataset):
    with pytest.raises(DataError, match="A history and the prompt take 8 positions; the LM reads 7. Shorten data.max_"):
        dataset(window=7)
