"""Histories as text for a language model, one purchase per line, safe against prompt injection by reviews."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import polars as pl

from regen.data.histories import positions_up_to, withheld_reviews
from regen.data.tables import Tables

OPEN, CLOSE = "<history>", "</history>"
_REVIEW = ("rating", "review_title", "review_text")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True)
class Purchase:
    """One interaction and its item."""

    item_id: str
    timestamp: int | None
    title: str
    description: str | None
    category: str | None
    brand: str | None
    price: float | None
    rating: float | None
    review_title: str | None
    review_text: str | None

    def without_review(self) -> "Purchase":
        """A copy without rating and review."""
        return replace(self, rating=None, review_title=None, review_text=None)


SHOWN = tuple(name for name in Purchase.__dataclass_fields__ if name not in ("item_id", "timestamp"))
"""Fields of a purchase that a language model reads, besides its date."""


@dataclass(frozen=True)
class UserHistory:
    """A user's purchases, oldest first. The last one is the final item."""

    user_id: str
    purchases: tuple[Purchase, ...]

    @property
    def final(self) -> Purchase:
        """The latest purchase."""
        return self.purchases[-1]

    def ending_with(self, item_id: str, timestamp: int | None = None) -> "UserHistory | None":
        """The history up to the latest purchase of that item; None if there is none."""
        items, times = zip(*((one.item_id, one.timestamp) for one in self.purchases), strict=True)
        chosen = positions_up_to(items, times, item_id, timestamp)
        return None if chosen is None else replace(self, purchases=tuple(self.purchases[at] for at in chosen))

    def without_final_review(self) -> "UserHistory":
        """A copy without the final review and its duplicates on other purchases."""
        reviews = [(purchase.review_title, purchase.review_text) for purchase in self.purchases]
        withheld = withheld_reviews(reviews, final=True)
        kept = [
            purchase.without_review() if copied else purchase
            for purchase, copied in zip(self.purchases[:-1], withheld[:-1], strict=True)
        ]
        return replace(self, purchases=(*kept, self.final.without_review()))


def draw_users(ids: pl.Series, users: int) -> list[str]:
    """Draws users by a hash of their ids, so a larger number adds users."""
    return sorted(ids.unique().to_list(), key=lambda user: hashlib.sha256(user.encode()).digest())[:users]


def user_histories(tables: Tables, *, max_history: int, users: int | None = None) -> Iterator[UserHistory]:
    """Yields the histories of all users who bought an item with a title, by user id.

    Args:
        tables: Prepared tables.
        max_history: Maximum number of purchases, the latest ones.
        users: Maximum number of users, None for all; see `draw_users`.

    Raises:
        ValueError: If a number is below 1.
    """
    if max_history < 1 or (users is not None and users < 1):
        raise ValueError(f"max_history={max_history}, users={users}: both have to be at least 1.")
    columns = [name for name in SHOWN if name not in _REVIEW]
    items = tables.items.filter(pl.col("title").is_not_null()).select("item_id", *columns)
    bought = tables.interactions.join(items.select("item_id"), on="item_id", how="semi", maintain_order="left")
    if users is not None:
        bought = bought.filter(pl.col("user_id").is_in(draw_users(bought["user_id"], users)))
    latest = bought.group_by("user_id", maintain_order=True).tail(max_history)
    details = {row[0]: row[1:] for row in items.iter_rows()}
    for (user,), rows in latest.group_by("user_id", maintain_order=True):
        purchases = [
            Purchase(item_id, timestamp, *details[item_id], *review)
            for item_id, timestamp, *review in rows.select("item_id", "timestamp", *_REVIEW).iter_rows()
        ]
        yield UserHistory(str(user), tuple(purchases))


def history_text(history: UserHistory, *, text_characters: int, characters: int) -> tuple[str, int]:
    """The history between `<history>` and `</history>`, one JSON object per line.

    `<` and `>` are escaped and control characters are removed. So a review cannot close the tag, add a line or contain
    a chat template's token in angle brackets.

    Args:
        history: The user's purchases.
        text_characters: Maximum length of a title, description or review; longer ones are truncated.
        characters: Maximum length of the history. The oldest purchases that do not fit are dropped, but never the final
            one.

    Returns:
        The text, and the number of dropped purchases.
    """
    total = len(history.purchases)
    lines: list[str] = []
    size = 0
    for position in range(total, 0, -1):
        purchase = history.purchases[position - 1]
        line = _line(purchase, position, final=position == total, text_characters=text_characters)
        size += len(line) + 1
        if lines and size > characters:
            break
        lines.append(line)
    return "\n".join([OPEN, *reversed(lines), CLOSE]), total - len(lines)


def _line(purchase: Purchase, position: int, *, final: bool, text_characters: int) -> str:
    day = None if purchase.timestamp is None else datetime.fromtimestamp(purchase.timestamp, UTC).date().isoformat()
    shown: dict[str, Any] = {
        "position": position,
        "final_item": final,
        "date": day,
        **{name: getattr(purchase, name) for name in SHOWN},
    }
    plain = {
        key: CONTROL.sub(" ", value)[:text_characters] if isinstance(value, str) else value
        for key, value in shown.items()
        if value is not None
    }
    return fenced(plain)


def fenced(values: Mapping[str, Any]) -> str:
    """JSON without control characters and angle brackets, so that it cannot close or open a tag of the prompt."""
    text = CONTROL.sub(" ", json.dumps(values, ensure_ascii=False))
    return text.replace("<", "\\u003c").replace(">", "\\u003e")
