"""Histories: for every narrative the interactions the model is given, and the reviews it must not see."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from regen.config.schema import Split
from regen.data.splits import history_ends, split_narratives
from regen.data.tables import Tables

logger = logging.getLogger(__name__)
_NOT_WORDS = re.compile(r"[\W_]+")


Review = tuple[str | None, str | None]
"""Title and text."""


def _said(review: Review) -> str:
    """What a review says, without case, punctuation and spacing: of its text, or of its title if it has no text."""
    said = next((part.strip() for part in reversed(review) if part and part.strip()), "")
    return _NOT_WORDS.sub(" ", said.casefold()).strip() or said  # a review may consist of an emoji


def withheld_reviews(reviews: Sequence[Review], *, final: bool) -> np.ndarray:
    """Which reviews of a history are kept from the model: none, or the final one and every copy of it.

    Args:
        reviews: Oldest first.
        final: Whether the feature withholds the final review.
    """
    said = [_said(review) if final else "" for review in reviews]
    withheld = np.array([bool(one) and one == said[-1] for one in said])
    withheld[-1] = final
    return withheld


@dataclass(frozen=True, eq=False)
class Example:
    """One narrative and the history it is written from.

    Attributes:
        user_id: Whose narrative.
        feature: Which one.
        item_id: The item it speaks of, None where it speaks of the user.
        text: The reference.
        rows: Row of each interaction in the sorted interactions, oldest first.
        withheld: Whether the review of that interaction is kept from the model.
        split: `train`, `validation` or `test`; None where nothing was split.
    """

    user_id: str
    feature: str
    item_id: str | None
    text: str
    rows: np.ndarray
    withheld: np.ndarray
    split: str | None = None


def build_examples(
    tables: Tables, *, withhold: Mapping[str, bool], max_history: int = 50, split: Split | None = None
) -> list[Example]:
    """Histories of all narratives of the given features.

    A history holds the user's interactions up to the one the narrative speaks of, which comes last; for a narrative
    about the user all of them. Items without a title are left out (paper 3.2), then the latest `max_history` are kept.
    Interactions of the same time come before the one spoken of. Where a feature withholds the final review, the same
    review copied to other interactions of the user is withheld too.

    Args:
        tables: Prepared tables; row numbers refer to their sorted interactions.
        withhold: For each feature to build, whether the final interaction's review is withheld.
        max_history: The longest history.
        split: Says which split an example belongs to; those that belong to none are left out. A split by time ends
            the histories of validation and test before its points, the interaction spoken of excepted, whose review is
            then withheld.

    Raises:
        ValueError: If `max_history` is below 1.
    """
    if max_history < 1:
        raise ValueError(f"data.max_history={max_history} has to be at least 1.")
    titled = tables.items.filter(pl.col("title").is_not_null()).select("item_id")
    rows = tables.interactions.with_row_index("row").join(titled, on="item_id", how="semi", maintain_order="left")
    narratives, ends = tables.narratives.with_columns(split=pl.lit(None, dtype=pl.String)), {}
    if split is not None:
        ends = history_ends(tables, split)
        narratives = narratives.with_columns(split_narratives(tables, split)).filter(pl.col("split").is_not_null())
    narratives = narratives.filter(pl.col("feature").is_in(list(withhold)), pl.col("text").is_not_null())
    by_user = _History.of(
        rows.join(narratives.select("user_id").unique(), on="user_id", how="semi", maintain_order="left")
    )
    examples, without = [], []
    for user, feature, item, timestamp, text, part in narratives.select(
        "user_id", "feature", "item_id", "timestamp", "text", "split"
    ).iter_rows():
        history = by_user.get(user)
        chosen = None if history is None else history.up_to(item, timestamp, max_history, end=ends.get(part))
        if history is None or chosen is None:
            without.append(user)
            continue
        hidden = withheld_reviews([history.reviews[at] for at in chosen], final=withhold[feature] or bool(ends))
        examples.append(Example(user, feature, item, text, history.rows[chosen], hidden, part))
    if without:
        logger.warning(
            "%d of %d narratives are left out: their item, or every item of their user, has no title (first: user %r).",
            len(without),
            len(narratives),
            without[0],
        )
    return examples


@dataclass(frozen=True, eq=False)
class _History:
    """All titled interactions of one user, in order."""

    rows: np.ndarray
    items: list[str]
    times: list[int | None]
    reviews: list[Review]

    @staticmethod
    def of(rows: pl.DataFrame) -> "dict[str, _History]":
        columns = ("row", "item_id", "timestamp", "review_title", "review_text")
        grouped = rows.group_by("user_id", maintain_order=True).agg(*columns)
        return {
            user: _History(np.asarray(row, dtype=np.int64), items, times, list(zip(titles, texts, strict=True)))
            for user, row, items, times, titles, texts in grouped.iter_rows()
        }

    def up_to(self, item: str | None, timestamp: int | None, most: int, *, end: int | None = None) -> np.ndarray | None:
        """Positions of the history that ends with the given interaction; None where the user has no such one.

        With an `end` the interactions before that one lie before this time.
        """
        everything = np.arange(len(self.rows))
        if item is None:
            return everything[-most:]
        spoken_of = [
            at for at in everything if self.items[at] == item and (timestamp is None or self.times[at] == timestamp)
        ]
        if not spoken_of:
            return None
        last = spoken_of[-1]
        bound = self.times[last]
        before = [
            at for at, time in enumerate(self.times) if at != last and (bound is None or time is None or time <= bound)
        ]
        if end is not None:
            before = [at for at in before if (time := self.times[at]) is not None and time < end]
        return np.array([*before, last])[-most:]
