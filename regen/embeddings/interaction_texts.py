"""The text that the sentence encoder reads of an interaction: item, rating and review (paper 4.2).

A sentence encoder reads a limited number of tokens, its window. A text that is too long for it is cut here, so that
each part keeps a share: without this a long description would push the whole review out of the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from regen.embeddings import content

PARTS = ("title", "category", "description", "review")
SEPARATOR = ". "


@dataclass(frozen=True)
class InteractionTexts:
    """One text per interaction, and how many characters of its review are in the text.

    Attributes:
        texts: What the encoder reads.
        review_characters: Length of each review before any cut, in characters.
        kept_characters: How many of them the text holds.
    """

    texts: list[str]
    review_characters: np.ndarray
    kept_characters: np.ndarray


def item_parts(items: pl.DataFrame) -> pl.DataFrame:
    """Metadata of each item, m_i of the paper: columns `title`, `category` (with brand and price) and `description`.

    Args:
        items: Rows of `items.parquet`.

    Returns:
        One row per item; a part that the item lacks is an empty text.
    """
    price = pl.when(pl.col("price").is_not_null()).then(pl.format("{} dollars", pl.col("price").round(2)))
    return items.select(
        title=pl.col("title").fill_null(""),
        category=pl.concat_str([pl.col("category"), pl.col("brand"), price], separator=SEPARATOR, ignore_nulls=True),
        description=pl.col("description").fill_null(""),
    )


def review_text(interactions: pl.DataFrame) -> pl.Series:
    """Rating and review of each interaction as one text, p_i of the paper; empty where there is neither."""
    rating = pl.when(pl.col("rating").is_not_null()).then(pl.format("{} stars", pl.col("rating")))
    parts = [rating, pl.col("review_title"), pl.col("review_text")]
    return interactions.select(pl.concat_str(parts, separator=SEPARATOR, ignore_nulls=True).alias("text"))["text"]


def interaction_texts(items: pl.DataFrame, reviews: Sequence[str], *, pretrained: str) -> InteractionTexts:
    """Joins the parts of each interaction and cuts those texts that do not fit into the encoder's window.

    A part that is shorter than an equal share of the window stays whole, and the longer parts divide what it leaves.

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
        # a token has at least one byte, so only longer texts have to be tokenised
        long = [at for at, row in enumerate(rows) if len(_joined(row).encode()) > room]
        for at, row in zip(long, _cut([rows[at] for at in long], encoder.tokenizer, room), strict=True):
            rows[at] = row
    kept = np.array([len(row[-1]) for row in rows], dtype=np.int64)
    return InteractionTexts([_joined(row) for row in rows], before, kept)


def _joined(parts: Sequence[str]) -> str:
    return SEPARATOR.join(part for part in parts if part)


def _room(encoder: Any) -> int | None:
    """Tokens of the encoder's window that a text can fill; None where the window has no limit."""
    if encoder.max_seq_length is None:
        return None
    prompt = (encoder.prompts or {}).get(encoder.default_prompt_name) or ""
    used = len(_tokens(encoder.tokenizer, [prompt])[0]) + encoder.tokenizer.num_special_tokens_to_add()
    return max(len(PARTS), encoder.max_seq_length - used)


def _cut(rows: Sequence[list[str]], tokenizer: Any, room: int) -> list[list[str]]:
    """The parts of each text, shortened to the room."""
    distinct = list(dict.fromkeys(part for row in rows for part in row))  # items repeat over interactions
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
    """The most that each part may have, so that all parts together fit: what short parts leave, longer ones divide."""
    left, waiting = room, len(lengths)
    for length in sorted(lengths):
        if length * waiting > left:
            return max(1, left // waiting)
        left, waiting = left - length, waiting - 1
    return max(lengths)


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Position in the text, in characters, where each of its tokens ends."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [[end for _, end in offsets] for offsets in found["offset_mapping"]]
