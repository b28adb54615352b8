"""Builds the history of each narrative: the interactions before it, and the reviews to withhold."""

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
    """The text of a review, or its title if it has no text, without case, punctuation and spacing."""
    said = next((part.strip() for part in reversed(review) if part and part.strip()), "")
    return _NOT_WORDS.sub(" ", said.casefold()).strip() or said  # a review may consist of an emoji


def withheld_reviews(reviews: Sequence[Review], *, final: bool) -> np.ndarray:
    """Masks the final review and its duplicates, or nothing.

    Args:
        reviews: Reviews of a history, oldest first.
        final: Whether the feature withholds the final review.
    """
    said = [_said(review) if final else "" for review in reviews]
    withheld = np.array([bool(one) and one == said[-1] for one in said])
    withheld[-1] = final
    return withheld


@dataclass(frozen=True, eq=False)
class Example:
    """One narrative and its history.

    Attributes:
        user_id: The user.
        feature: The output feature.
        item_id: The item that the narrative is about, None if it is about the user.
        text: The reference narrative.
        rows: Row of each interaction of the history in `tables.interactions`, oldest first.
        withheld: Whether the review of each interaction is hidden from the model.
        split: `train`, `validation` or `test`; None if the data were not split.
    """

    user_id: str
    feature: str
    item_id: str | None
    text: str
    rows: np.ndarray
    withheld: np.ndarray
    split: str | None = None


def build_examples(
    tables: Tables,
    *,
    withhold: Mapping[str, bool],
    max_history: int = 50,
    split: Split | None = None,
    warn: bool = True,
) -> list[Example]:
    """Builds the examples of all narratives of the given features.

    The history of a narrative about an interaction ends with that interaction; others at the same time come before it.
    The history of a narrative about the user has all interactions. Items without a title are dropped (paper 3.2), then
    the latest `max_history` interactions are kept. If a feature withholds the final review, duplicates of that review
    are withheld too.

    Args:
        tables: Prepared tables.
        withhold: For each feature to build, whether the final interaction's review is withheld.
        max_history: Maximum length of a history.
        split: Assigns examples to splits; those in no split are dropped. In a split by time, interactions of validation
            and test histories lie before its points, except the one that the narrative is about, whose review is then
            withheld.
        warn: Whether to log how many narratives have no history.

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
    if without and warn:
        logger.warning(
            "%d of %d narratives are dropped: their item, or every item of their user, has no title (first: user %r).",
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
        """Positions of the history that ends with the given interaction; None if the user has no such interaction.

        With an `end`, all other interactions lie before this time.
        """
        if item is None:
            return np.arange(len(self.rows))[-most:]
        chosen = positions_up_to(self.items, self.times, item, timestamp)
        if end is not None and chosen is not None:
            *before, last = chosen
            chosen = [*(at for at in before if (time := self.times[at]) is not None and time < end), last]
        return None if chosen is None else np.array(chosen)[-most:]


def positions_up_to(
    items: Sequence[str], times: Sequence[int | None], item: str, timestamp: int | None
) -> list[int] | None:
    """Positions of the interactions up to the latest one with this item, which comes last in the result.

    An interaction with an unknown time counts as earlier.

    Args:
        items: Item of each interaction.
        times: Time of each interaction.
        item: The item to end with.
        timestamp: Time of the interaction to end with, None for any.

    Returns:
        None if there is no such interaction.
    """
    found = [at for at, one in enumerate(items) if one == item and timestamp in (None, times[at])]
    if not found:
        return None
    last = found[-1]
    bound = times[last]
    before = [at for at, time in enumerate(times) if at != last and (bound is None or time is None or time <= bound)]
    return [*before, last]
