"""Histories as a language model reads them: a purchase a line, fenced so that no review can pass for anything else."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import polars as pl

from regen.data.histories import withheld_reviews
from regen.data.tables import Tables

OPEN, CLOSE = "<history>", "</history>"
_REVIEW = ("rating", "review_title", "review_text")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True)
class Purchase:
    """One interaction with what its item is."""

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
        """The purchase before it was reviewed."""
        return replace(self, rating=None, review_title=None, review_text=None)


@dataclass(frozen=True)
class UserHistory:
    """A user's purchases, oldest first; the last one is the final item."""

    user_id: str
    purchases: tuple[Purchase, ...]

    @property
    def final(self) -> Purchase:
        """The latest purchase."""
        return self.purchases[-1]

    def ending_with(self, item_id: str, timestamp: int | None = None) -> "UserHistory | None":
        """The history up to a purchase of that item, the latest if there are several; None where there is none."""
        at = [
            position
            for position, purchase in enumerate(self.purchases)
            if purchase.item_id == item_id and timestamp in (None, purchase.timestamp)
        ]
        if not at:
            return None
        chosen = self.purchases[at[-1]]
        before = [
            purchase
            for position, purchase in enumerate(self.purchases)
            if position != at[-1]
            and (None in (purchase.timestamp, chosen.timestamp) or purchase.timestamp <= chosen.timestamp)  # type: ignore[operator]
        ]
        return replace(self, purchases=(*before, chosen))

    def without_final_review(self) -> "UserHistory":
        """The history before its final item was reviewed; a copy of that review on another purchase goes with it."""
        reviews = [(purchase.review_title, purchase.review_text) for purchase in self.purchases]
        withheld = withheld_reviews(reviews, final=True)
        kept = [
            purchase.without_review() if copied else purchase
            for purchase, copied in zip(self.purchases[:-1], withheld[:-1], strict=True)
        ]
        return replace(self, purchases=(*kept, self.final.without_review()))


def user_histories(tables: Tables, *, max_history: int, users: int | None = None) -> Iterator[UserHistory]:
    """The histories of all users who bought something with a title, by user id.

    Args:
        tables: Prepared tables.
        max_history: How many purchases, the latest ones.
        users: Only so many users, drawn by a hash of their id, so that more users mean the same ones and others.

    Raises:
        ValueError: If that leaves nothing.
    """
    if max_history < 1 or (users is not None and users < 1):
        raise ValueError(f"max_history={max_history}, users={users}: both have to be at least 1.")
    columns = [name for name in Purchase.__dataclass_fields__ if name not in ("item_id", "timestamp", *_REVIEW)]
    items = tables.items.filter(pl.col("title").is_not_null()).select("item_id", *columns)
    bought = tables.interactions.join(items.select("item_id"), on="item_id", how="semi", maintain_order="left")
    if users is not None:
        ids = bought["user_id"].unique().to_list()
        chosen = sorted(ids, key=lambda user: hashlib.sha256(user.encode()).digest())[:users]
        bought = bought.filter(pl.col("user_id").is_in(chosen))
    latest = bought.group_by("user_id", maintain_order=True).tail(max_history)
    details = {row[0]: row[1:] for row in items.iter_rows()}
    for (user,), rows in latest.group_by("user_id", maintain_order=True):
        purchases = [
            Purchase(item_id, timestamp, *details[item_id], *review)
            for item_id, timestamp, *review in rows.select("item_id", "timestamp", *_REVIEW).iter_rows()
        ]
        yield UserHistory(str(user), tuple(purchases))


def history_text(history: UserHistory, *, text_characters: int, characters: int) -> tuple[str, int]:
    """The history between `<history>` and `</history>`, a JSON object a line.

    Inside, `<` and `>` are escaped and control characters are gone: whatever a reviewer wrote, the fence stands exactly
    where we put it, a line is a purchase, and no token of a chat template that is written in angle brackets can appear.

    Args:
        history: The user's purchases.
        text_characters: A longer title, description or review is cut there.
        characters: Of the whole; the oldest purchases that do not fit are left out, the final one never.

    Returns:
        The text, and how many purchases were left out.
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
        "title": purchase.title,
        "description": purchase.description,
        "category": purchase.category,
        "brand": purchase.brand,
        "price": purchase.price,
        "rating": purchase.rating,
        "review_title": purchase.review_title,
        "review_text": purchase.review_text,
    }
    plain = {
        key: CONTROL.sub(" ", value)[:text_characters] if isinstance(value, str) else value
        for key, value in shown.items()
        if value is not None
    }
    text = json.dumps(plain, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e")
