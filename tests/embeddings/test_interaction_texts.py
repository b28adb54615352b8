"""The text of an interaction gives every part its share of the sentence encoder's window."""

import numpy as np
import polars as pl
import pytest

from regen.data.tables import ITEMS
from regen.embeddings.content import embed_texts, load_sentence_encoder
from regen.embeddings.interaction_texts import fair_share, interaction_texts, item_parts

WORST, BEST = "1.0 stars. It broke on day one and cut my hand", "5.0 stars. Best gift ever for my father"


def parts(description=None, **item):
    row = dict.fromkeys(ITEMS.names()) | {"title": "Desk clock", "description": description} | item
    return item_parts(pl.DataFrame([row] * 3, schema=ITEMS))


def window_of(text):
    encoder = load_sentence_encoder("minilm")
    return len(encoder.tokenizer(text)["input_ids"]), encoder.max_seq_length


def test_what_fits_is_not_touched():
    made = interaction_texts(parts("A clock.", category="Office", price=3.5), [WORST, BEST, ""], pretrained="minilm")
    assert made.texts[0] == f"Desk clock. Office. 3.5 dollars. A clock.. {WORST}"
    assert made.texts[2] == "Desk clock. Office. 3.5 dollars. A clock."
    assert made.kept_characters.tolist() == made.review_characters.tolist() == [len(WORST), len(BEST), 0]


@pytest.mark.parametrize("words", [100, 240, 1000])
@pytest.mark.parametrize("part", ["title", "category", "description"])
def test_opposite_reviews_differ_for_any_length_of_the_item(part, words):
    item = parts(**{part: "battery operated wall clock with numbers " * (words // 6)})
    made = interaction_texts(item, [WORST, BEST, ""], pretrained="minilm")
    assert all(review in text for review, text in zip([WORST, BEST], made.texts, strict=False))
    tokens, window = window_of(made.texts[0])
    assert tokens <= window
    worst, best, none = embed_texts(made.texts)
    assert max(worst @ best, worst @ none, best @ none) < 0.99


def test_a_long_review_leaves_the_description_its_share_and_is_counted():
    reviews = ["5.0 stars. " + "fine " * 400, BEST, ""]
    made = interaction_texts(parts("battery " * 400), reviews, pretrained="minilm")
    assert made.review_characters.tolist() == [len(reviews[0]), len(BEST), 0]
    assert made.kept_characters[0] < len(reviews[0])
    assert made.kept_characters[1:].tolist() == [len(BEST), 0]
    assert 100 < made.texts[0].count("fine") < 150
    assert 100 < made.texts[0].count("battery") < 150
    assert np.all([window_of(text)[0] <= window_of(text)[1] for text in made.texts])


@pytest.mark.parametrize(
    ("lengths", "room", "most"),
    [([3, 0, 500, 500], 103, 50), ([3, 0, 20, 500], 103, 80), ([500] * 4, 100, 25), ([1, 2, 3, 4], 10, 4)],
)
def test_what_short_parts_leave_is_divided(lengths, room, most):
    assert fair_share(lengths, room) == most
