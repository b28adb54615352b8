"""Critiques (REGEN's second paper): a user's words about one purchase that lead to the next one.

Fixed rules write them here, a language model in `regen.narratives.critiques`. A critique by the rules names one or two
attributes in which the next item differs from the last one, but never the item itself. Adjacent purchases have a
critique if their category paths overlap enough.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from regen.data.tables import CRITIQUES, Tables

VERSION = 1
MOST = 2  # attributes in a critique
_BETWEEN = ("from_item_id", "to_item_id")
LONGEST = 500  # characters of a critique
LONG_TITLE = 4  # words; a critique names an item with a title this long if it has more than half of them
PRICES = {"cheaper": 0.8, "of a better quality": 1.25}  # bounds of next price / last price
PATH = re.compile(r"\s*(?:>|\||::|\s-\s)\s*")
WISHES = ("I'd rather have {wish}.", "Not quite. Do you have {wish}?", "I was thinking of {wish}.", "Show me {wish}.")
Item = Mapping[str, Any]


def critique(last: Item, following: Item) -> str | None:
    """The critique that leads from one item to another, always the same for the same two items.

    Args:
        last: The item bought first: `title`, `category`, `brand` and `price`, each may be None.
        following: The item bought next, likewise.

    Returns:
        None if no attribute differs.
    """
    words = dict(named(last, following))
    if not words:
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


def names_item(text: str, title: str) -> bool:
    """Whether a text contains a title, or more than half of the different words of a title of four words or more.

    Case and punctuation do not matter. Words of one or two letters without a digit do not count.
    """
    said, name = (re.findall(r"[^\W_]+", of.casefold()) for of in (text, title))
    words = {word for word in name if len(word) > 2 or any(map(str.isdigit, word))}
    if words and f" {' '.join(name)} " in f" {' '.join(said)} ":
        return True
    return len(words) >= LONG_TITLE and 2 * len(words.intersection(said)) > len(words)


@dataclass(frozen=True)
class Pairs:
    """Adjacent purchases that may have a critique.

    Attributes:
        rows: `user_id`, `from_item_id`, `to_item_id` and the `timestamp` of the second purchase.
        items: The row of each item with a title, by its id.
    """

    rows: pl.DataFrame
    items: Mapping[str, Item]

    def distinct(self) -> Iterator[tuple[str, Item, Item]]:
        """Yields each two items once: the first user who bought them, the item bought first, the item bought next."""
        once = self.rows.unique(_BETWEEN, keep="first", maintain_order=True)
        for user, last, following in once.select("user_id", *_BETWEEN).iter_rows():
            yield user, self.items[last], self.items[following]

    def with_texts(self, texts: Sequence[Mapping[str, Any]], schema: pl.Schema) -> pl.DataFrame:
        """The pairs that have a critique.

        Args:
            texts: `from_item_id`, `to_item_id`, `text` and other columns of the schema, one row per two items.
            schema: Columns of the result.
        """
        of_items = pl.Schema({name: dtype for name, dtype in schema.items() if name not in ("user_id", "timestamp")})
        known = pl.DataFrame(texts, schema=of_items, orient="row")
        return self.rows.join(known, on=_BETWEEN, maintain_order="left").select(schema.names())


def pairs_of(tables: Tables, *, shared: float, users: Sequence[str] | None = None, most: int | None = None) -> Pairs:
    """All pairs of adjacent purchases whose items share enough of their category path.

    Items without a title are dropped and a repeated purchase counts once, as in `regen.data.next_item`.

    Args:
        tables: Prepared tables.
        shared: Minimum common prefix of the two category paths, as a share of the longer one; 0 for no minimum.
        users: The users, None for all.
        most: Maximum number of pairs per user, the latest ones; None for all.
    """
    items = {row["item_id"]: row for row in tables.items.iter_rows(named=True) if row["title"] is not None}
    bought = tables.interactions.select("user_id", "item_id", "timestamp").filter(pl.col("item_id").is_in(list(items)))
    if users is not None:
        bought = bought.filter(pl.col("user_id").is_in(list(users)))
    bought = bought.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    last = pl.col("item_id").shift().over("user_id").alias("from_item_id")
    rows = bought.select("user_id", last, pl.col("item_id").alias("to_item_id"), "timestamp")
    rows = rows.drop_nulls("from_item_id")
    if most is not None:
        rows = rows.group_by("user_id", maintain_order=True).tail(most)
    if shared > 0:
        once = rows.select(_BETWEEN).unique()
        shares = [_shared_path(items[last]["category"], items[then]["category"]) for last, then in once.iter_rows()]
        near = once.filter(pl.Series(shares, dtype=pl.Float64) >= shared)
        rows = rows.join(near, on=_BETWEEN, how="semi", maintain_order="left")
    return Pairs(rows, items)


def rule_texts(pairs: Pairs) -> list[dict[str, Any]]:
    """The critiques of the rules: `from_item_id`, `to_item_id` and `text` for each two items that have one."""
    return [
        {"from_item_id": last["item_id"], "to_item_id": following["item_id"], "text": text}
        for _, last, following in pairs.distinct()
        if (text := critique(last, following)) is not None
    ]


def critiques_of(tables: Tables, *, shared: float) -> pl.DataFrame:
    """The critiques that a run reads: those of the data if they have any table of them, otherwise those of the rules.

    Args:
        tables: Prepared or narrated tables.
        shared: As for `pairs_of`; pairs that share less have no critique, whoever wrote it.

    Returns:
        Columns `CRITIQUES`.
    """
    pairs = pairs_of(tables, shared=shared)
    if tables.critiques is None:
        return pairs.with_texts(rule_texts(pairs), CRITIQUES)
    of_pairs = tables.critiques.select(CRITIQUES.names())
    return of_pairs.join(pairs.rows, on=("user_id", *_BETWEEN), how="semi", maintain_order="left")


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
