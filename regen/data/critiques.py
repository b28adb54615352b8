"""Critiques (REGEN's second paper): a user's words about one purchase that lead to the next one.

Fixed rules write them, without a language model. A critique names one or two attributes in which the next item differs
from the last one, but never the item itself. Adjacent purchases have a critique if their category paths overlap enough.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from regen.data.tables import Tables

VERSION = 1
MOST = 2  # attributes in a critique
PRICES = {"cheaper": 0.8, "of a better quality": 1.25}  # bounds of next price / last price
PATH = re.compile(r"\s*(?:>|\||::|\s-\s)\s*")
WISHES = ("I'd rather have {wish}.", "Not quite. Do you have {wish}?", "I was thinking of {wish}.", "Show me {wish}.")
COLUMNS = pl.Schema(
    {
        "user_id": pl.String(),
        "from_item_id": pl.String(),
        "to_item_id": pl.String(),
        "timestamp": pl.Int64(),
        "text": pl.String(),
    }
)
Item = Mapping[str, Any]


def critique(last: Item, following: Item, *, shared: float = 0.0) -> str | None:
    """The critique that leads from one item to another, always the same for the same two items.

    Args:
        last: The item bought first: `title`, `category`, `brand` and `price`, each may be None.
        following: The item bought next, likewise.
        shared: Minimum common prefix of the two category paths, as a share of the longer one; 0 for no minimum.

    Returns:
        None if no attribute differs, or if the categories are too different.
    """
    words = dict(named(last, following))
    if not words or (shared > 0 and _shared_path(last.get("category"), following.get("category")) < shared):
        return None
    thing = words.pop("category", None)
    before = [words.pop(name) for name in ("price", "word") if name in words and words[name] != "of a better quality"]
    after = [words.pop("price")] if "price" in words else []
    after += [f"from {words.pop('brand')}"] if "brand" in words else []
    wish = " ".join(["something" if thing is None else "a", *before, *([thing] if thing else []), *after])
    return WISHES[_number(last, following) // 7 % len(WISHES)].format(wish=wish)


def named(last: Item, following: Item) -> dict[str, str]:
    """The attributes of the next item that the critique names, by kind."""
    found = differences(last, following)
    names = sorted(found)
    number = _number(last, following)
    chosen = {names[(number + step) % len(names)] for step in range(min(MOST, len(names)))}
    return {name: found[name] for name in names if name in chosen}


def _number(last: Item, following: Item) -> int:
    """A hash of the two items, which chooses attributes and words."""
    return int(hashlib.sha256(f"{last.get('item_id')} {following.get('item_id')}".encode()).hexdigest(), 16)


def differences(last: Item, following: Item) -> dict[str, str]:
    """All attributes of the next item that differ: `brand`, `category`, `price`, or a `word` of the title."""
    found: dict[str, str] = {}
    if following.get("brand") and following["brand"] != last.get("brand"):
        found["brand"] = str(following["brand"])
    kind, before = (_path(of.get("category"))[-1:] for of in (following, last))
    if kind and kind != before:
        found["category"] = kind[0].lower()
    if last.get("price") and following.get("price"):
        ratio = following["price"] / last["price"]
        if ratio <= PRICES["cheaper"]:
            found["price"] = "cheaper"
        elif ratio >= PRICES["of a better quality"]:
            found["price"] = "of a better quality"
    known = _words(last.get("title")) | _words(following.get("brand")) | _words(following.get("category"))
    if new := _words(following.get("title")) - known:
        found["word"] = max(sorted(new), key=len)
    return found


def _words(text: str | None) -> set[str]:
    return {word for word in re.findall(r"[^\W\d_]+", (text or "").lower()) if len(word) > 2}


def _path(category: str | None) -> list[str]:
    return [part for part in PATH.split(category or "") if part]


def _shared_path(one: str | None, other: str | None) -> float:
    paths = _path(one), _path(other)
    longest = max(map(len, paths))
    same = list(takewhile(lambda names: names[0] == names[1], zip(*paths, strict=False)))
    return len(same) / longest if longest else 0.0


def critiques_of(tables: Tables, *, shared: float) -> pl.DataFrame:
    """The critiques of all pairs of adjacent purchases that have one; columns `COLUMNS`.

    Items without a title are dropped and a repeated purchase counts once, as in `regen.data.next_item`.

    Args:
        tables: Prepared tables.
        shared: As for `critique`.
    """
    items = {row["item_id"]: row for row in tables.items.iter_rows(named=True) if row["title"] is not None}
    bought = tables.interactions.select("user_id", "item_id", "timestamp").filter(pl.col("item_id").is_in(list(items)))
    bought = bought.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    pairs = bought.with_columns(last=pl.col("item_id").shift().over("user_id")).filter(pl.col("last").is_not_null())
    said: dict[tuple[str, str], str | None] = {}
    rows = []
    for user, following, timestamp, last in pairs.iter_rows():
        if (last, following) not in said:
            said[last, following] = critique(items[last], items[following], shared=shared)
        if (text := said[last, following]) is not None:
            rows.append((user, last, following, timestamp, text))
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


@dataclass(frozen=True)
class Critiques:
    """Critiques with their sentence embeddings.

    Attributes:
        texts: Distinct critiques.
        vectors: Embedding of each text. The additional last row is zero and means no critique.
        row_of: Row of the text, by user and the item that it leads to.
    """

    texts: list[str]
    vectors: Float[np.ndarray, "rows dim"]
    row_of: Mapping[tuple[str, str], int]

    def rows(self, user: str, items: Sequence[str]) -> list[int]:
        """Row of the critique that leads to each of a user's items, or -1 if there is none."""
        return [self.row_of.get((user, item), -1) for item in items]
