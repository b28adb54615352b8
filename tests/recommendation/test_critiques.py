"""What a user could say about one purchase that leads to the next one."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from narratives.bad_server import BadServer
from small import quick_embeddings
from test_next_item import SPLIT, tables

from regen.data.critiques import Critiques, critique, critiques_of
from regen.data.next_item import NextItemDataset, purchase_sequences
from regen.embeddings.encode_critiques import load_critiques
from regen.models.adapter import LinearAdapter
from regen.models.next_item import NextItemLM
from regen.pipeline import critique_part, data_artefact, plan, prepared_artefact, train_and_evaluate

PEN = {"item_id": "p", "title": "Acme pen, blue", "category": "Office > Writing > Pen", "brand": "Acme", "price": 10.0}


def other(**changed):
    return {**PEN, "item_id": "q", **changed}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"brand": "Orchid"}, "something from Orchid"),
        ({"price": 5.0}, "something cheaper"),
        ({"price": 20.0}, "something of a better quality"),
        ({"category": "Office > Writing > Pencil"}, "a pencil"),
        ({"title": "Acme pen, green"}, "something green"),
        ({"price": 5.0, "brand": "Orchid"}, "something cheaper from Orchid"),
        ({"price": 20.0, "category": "Office > Paper > Pad"}, "a pad of a better quality"),
    ],
)
def test_it_names_what_is_other_about_the_next_item(changed, named):
    said = critique(PEN, other(**changed))
    assert said is not None
    assert named in said


def test_it_names_two_attributes_at_most_and_never_the_item():
    next_one = other(title="Orchid pad, green", category="Pad", brand="Orchid", price=2.0)
    said = critique(PEN, next_one)
    words = {"orchid", "pad", "green", "cheaper"} & set(said.lower().strip("?.").replace(".", "").split())
    assert len(words) == 2
    assert next_one["title"].lower() not in said.lower()
    assert critique(PEN, next_one) == said


def test_items_that_differ_in_nothing_have_none():
    assert critique(PEN, other()) is None
    assert critique(PEN, other(price=9.0)) is None
    assert critique({"item_id": "a", "title": "x"}, {"item_id": "b", "title": None, "brand": None}) is None


@pytest.mark.parametrize(("shared", "has_one"), [(0.0, True), (0.6, True), (0.7, False)])
def test_purchases_have_to_share_enough_of_their_category(shared, has_one):
    of = tables({"u": [0, 1, 2]}, ["red pen", "blue pencil", "green pad"])
    categories = pl.Series("category", ["Office > Writing > Pen", "Office > Writing > Pencil", None])
    of = replace(of, items=of.items.with_columns(categories))
    found = critiques_of(of, shared=shared)["to_item_id"].to_list()
    assert found == ["i1"] * has_one + ["i2"] * (shared == 0)


def test_every_pair_of_adjacent_purchases_has_one():
    of = tables({"u": [0, 1, 0, 4, 2], "v": [3]}, ["red pen", "blue pen", "green pad", "x", None])
    found = critiques_of(of, shared=0)
    assert found.select("user_id", "from_item_id", "to_item_id", "timestamp").rows() == [
        ("u", "i0", "i1", 1),
        ("u", "i1", "i2", 4),
    ]
    assert "blue" in found["text"][0]


@pytest.fixture
def said(tiny_lm):
    """A data set of users in which what was said leads to the last item."""
    of = tables({f"u{n:02}": [0, 1, 2 + n % 2] for n in range(40)}, ["red pen", "blue pen", "green pen", "black pen"])
    made = critiques_of(of, shared=0)
    texts = made["text"].unique().sort().to_list()
    row_of = {(user, item): texts.index(text) for user, _, item, _, text in made.iter_rows()}
    vectors = np.concatenate([np.eye(len(texts), dtype=np.float32), np.zeros((1, len(texts)), dtype=np.float32)])
    examples = purchase_sequences(of, SPLIT, max_history=50, exclude_bought=True)
    item_of = of.interactions["item_id"].str.strip_prefix("i").cast(pl.Int64).to_numpy()
    seen = []

    def queries(history, said, *, fold):
        seen.append(said)
        return history.astype(np.float32)

    data = NextItemDataset(
        examples["train"],
        lambda example, draw: np.ones((len(example.rows), 3), dtype=np.float32),
        item_of=item_of,
        queries=queries,
        tokenizer=tiny_lm.tokenizer,
        prompt="next:",
        window=64,
        every=False,
        critiques=Critiques(texts, vectors, row_of),
        item_ids=[f"i{n}" for n in range(4)],
    )
    return data, seen, tiny_lm.tokenizer


def test_the_model_reads_what_was_said_about_the_last_purchase(said):
    data, seen, tokenizer = said
    batch = data.collate([0, 1])
    for row, words, mask in zip((0, 1), batch.words, batch.words_mask, strict=True):
        assert "blue" in tokenizer.decode(words[0][mask[0]])
        assert ("green" if data.examples[row].item_id == "i2" else "black") in tokenizer.decode(words[1][mask[1]])
    assert [one.shape for one in seen] == [(2, data.critiques.vectors.shape[1])] * 2  # after each purchase
    assert batch.targets.tolist() == [[-1, 2 + int(data.examples[row].item_id == "i3")] for row in (0, 1)]


@torch.no_grad()
def test_a_query_knows_what_was_said_by_then_and_nothing_after_it(said, tiny_lm):
    data, _, _ = said
    torch.manual_seed(0)
    model = NextItemLM(
        tiny_lm.working_copy(trainable=True).model,
        LinearAdapter(3, tiny_lm.width),
        items=torch.randn(4, 3),
        bias=torch.zeros(4),
        exclude_bought=True,
        bos_token_id=tiny_lm.tokenizer.bos_token_id,
    ).eval()
    torch.nn.init.normal_(model.readout.weight, std=5)
    batch = data.collate(range(6))
    before = model.queries(batch)
    batch.words[:, 1] = batch.words[:, 1].flip(-1)  # what was said last is another thing now
    after = model.queries(batch)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-3
    alone = model.queries(data.collate([3]))
    torch.testing.assert_close(alone[0], before[3], atol=1e-4, rtol=1e-4)


def test_critiques_are_an_artefact(small_config):
    cfg = small_config("task=recommend", "data.critiques=true")
    (stage,) = (one for one in plan(cfg).artefacts if one.stage == "encode critiques")
    with quick_embeddings():
        made = critique_part(cfg).encode(prepared_artefact(cfg), root=stage.folder.parent)
    assert made.path == stage.folder
    loaded = load_critiques(made)
    assert len(loaded.vectors) == len(loaded.texts) + 1
    assert not loaded.vectors[loaded.rows("nobody", ["i1"])].any()


def test_a_run_reads_the_critiques_of_its_narrator(small_config):
    with BadServer(["none"]) as server:
        openai = ["narrator=openai", "narrator.model=m", f"narrator.base_url={server.url}", "narrator.users=9"]
        cfg = small_config("task=recommend", "data.critiques=true", *openai, "narrator.shared_category=0")
        data = data_artefact(cfg)
        with quick_embeddings():
            loaded = load_critiques(critique_part(cfg).encode(data, root=data.path.parent))
    assert all(text.startswith("critique of nobody ") for text in loaded.texts)
    assert len({user for user, _ in loaded.row_of}) == 9
    assert [stage.folder for stage in plan(cfg).artefacts if stage.stage == "narrate"] == [data.path]


def test_critiques_belong_to_recommending(small_config):
    with pytest.raises(ValueError, match="data.critiques=true belongs to task=recommend"):
        train_and_evaluate(small_config("data.critiques=true"))
