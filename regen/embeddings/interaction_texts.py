"""Builds the texts for the sentence encoder from item, rating and review of each interaction (paper 4.2).

A sentence encoder truncates texts that are longer than its window. So that a long description does not push out the
review, the parts of a long text are shortened here, and each keeps a share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from regen.data.history_words import PRICE
from regen.embeddings import content

PARTS = ("title", "category", "description", "review")
SEPARATOR = ". "


@dataclass(frozen=True)
class InteractionTexts:
    """One text per interaction, and how much of its review it has.

    Attributes:
        texts: Texts for the encoder.
        review_characters: Number of characters of each review.
        kept_characters: Number of these characters in the text.
    """

    texts: list[str]
    review_characters: np.ndarray
    kept_characters: np.ndarray


def item_parts(items: pl.DataFrame) -> pl.DataFrame:
    """Metadata of each item (m_i of the paper): columns `title`, `category` (with brand and price) and `description`.

    Args:
        items: Rows of `items.parquet`.

    Returns:
        One row per item; missing parts are empty.
    """
    return items.select(
        title=pl.col("title").fill_null(""),
        category=pl.concat_str([pl.col("category"), pl.col("brand"), PRICE], separator=SEPARATOR, ignore_nulls=True),
        description=pl.col("description").fill_null(""),
    )


def interaction_texts(items: pl.DataFrame, reviews: Sequence[str], *, pretrained: str) -> InteractionTexts:
    """Joins the parts of each interaction, and shortens texts that do not fit into the encoder's window.

    Parts shorter than an equal share of the window stay whole. The longer parts share the rest.

    Args:
        items: Columns of `item_parts`, one row per interaction.
        reviews: Rating and review of each interaction, empty where the review is withheld or missing.
        pretrained: The sentence encoder, as for `load_sentence_encoder`.
    """
    encoder = content.load_sentence_encoder(pretrained)
    columns = [*(items[name].to_list() for name in PARTS[:-1]), list(reviews)]
    rows = [list(row) for row in zip(*columns, strict=True)]
    before = np.array([len(row[-1]) for row in rows], dtype=np.int64)
    room = _room(encoder)
    if room is not None:
        # a token has at least one byte, so only texts with more bytes need tokenising
        long = [at for at, row in enumerate(rows) if len(_joined(row).encode()) > room]
        for at, row in zip(long, _cut([rows[at] for at in long], encoder.tokenizer, room), strict=True):
            rows[at] = row
    kept = np.array([len(row[-1]) for row in rows], dtype=np.int64)
    return InteractionTexts([_joined(row) for row in rows], before, kept)


def _joined(parts: Sequence[str]) -> str:
    return SEPARATOR.join(part for part in parts if part)


def _room(encoder: Any) -> int | None:
    """Number of tokens of a text that fit into the encoder's window; None for no limit."""
    if encoder.max_seq_length is None:
        return None
    prompt = (encoder.prompts or {}).get(encoder.default_prompt_name) or ""
    used = len(_tokens(encoder.tokenizer, [prompt])[0]) + encoder.tokenizer.num_special_tokens_to_add()
    return max(len(PARTS), encoder.max_seq_length - used)


def _cut(rows: Sequence[list[str]], tokenizer: Any, room: int) -> list[list[str]]:
    """The parts of each text, shortened to `room` tokens."""
    distinct = list(dict.fromkeys(part for row in rows for part in row))  # items repeat
    ends_of = dict(zip(distinct, _tokens(tokenizer, distinct), strict=True))
    separator = len(_tokens(tokenizer, [SEPARATOR])[0])
    shortened = []
    for row in rows:
        ends = [ends_of[part] for part in row]
        most = fair_share([len(part) for part in ends], room - separator * (sum(map(bool, row)) - 1))
        shortened.append(
            [part if len(end) <= most else part[: end[most - 1]] for part, end in zip(row, ends, strict=True)]
        )
    return shortened


def fair_share(lengths: Sequence[int], room: int) -> int:
    """Maximum length of each part, so that all parts together fit into `room`."""
    left, waiting = room, len(lengths)
    for length in sorted(lengths):
        if length * waiting > left:
            return max(1, left // waiting)
        left, waiting = left - length, waiting - 1
    return max(lengths)


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """For each token of a text, the character position of its end."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [[end for _, end in offsets] for offsets in found["offset_mapping"]]
