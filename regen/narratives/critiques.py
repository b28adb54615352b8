"""Critiques by a language model: one request for each two items that somebody bought one after the other.

A request shows the two items and no reviews, so users who bought the same two items share the answer, and an answer
that is refused costs one critique. The rules are in `regen.data.critiques`.
"""

import sys
from collections.abc import Iterator
from dataclasses import fields, replace

import polars as pl

from regen.data.critiques import Item, Pairs
from regen.data.tables import CRITIQUES
from regen.narratives import answers
from regen.narratives.histories import Purchase, UserHistory
from regen.narratives.prompts import HistoryLimits, Prompt, Request

ORIGIN = pl.Schema(
    dict.fromkeys(("narrator", "model", "prompt", "sampling", "written"), pl.String()),
)
"""Origin of a text: narrator, model, prompt and its hash, sampling settings as JSON, UTC time."""
WRITTEN_CRITIQUES = pl.Schema({**CRITIQUES, **ORIGIN})
PROMPT = Prompt("critique", answers.Critique)


def pair_history(user_id: str, last: Item, following: Item) -> UserHistory:
    """Two items as a history of two purchases, without date and review."""
    empty = dict.fromkeys(field.name for field in fields(Purchase))
    known = [{name: of[name] for name in empty if name in of} for of in (last, following)]
    return UserHistory(user_id, tuple(Purchase(**{**empty, **values}) for values in known))


def pair_limits(limits: HistoryLimits) -> HistoryLimits:
    """The same limits, but neither item is ever dropped."""
    return replace(limits, characters=sys.maxsize)


def critique_requests(pairs: Pairs, limits: HistoryLimits) -> Iterator[tuple[Request, Item, Item]]:
    """Yields one request for each two items, with the item bought first and the item bought next."""
    for user, last, following in pairs.distinct():
        request = PROMPT.request(pair_history(user, last, following), pair_limits(limits))
        yield replace(request, unnamed=following["title"][: limits.text_characters]), last, following
