"""Users with reference narratives: a search, and the history of each narrative."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from regen.config.schema import Split
from regen.data.histories import Example, build_examples
from regen.data.tables import Tables

SPLITS = ("test", "validation", "train")  # in this order: unseen users first


@dataclass(frozen=True)
class KnownHistory:
    """A history with reference narratives.

    Attributes:
        rows: Rows in the sorted interactions, oldest first.
        references: The narrator's text for each feature.
    """

    rows: np.ndarray
    references: dict[str, str] = field(default_factory=dict)


class NarratedUsers:
    """Users with narratives of the given features, those of the test split first.

    Args:
        tables: Prepared tables.
        withhold: For each feature, whether the final review is withheld.
        max_history: The most interactions of a history.
        split: Settings of the split.
    """

    def __init__(self, tables: Tables, *, withhold: Mapping[str, bool], max_history: int, split: Split) -> None:
        examples = build_examples(tables, withhold=withhold, max_history=max_history, split=split)
        self._histories = _by_user(examples)
        items = tables.items.select("item_id", "title", "category")
        self._interactions = tables.interactions.join(items, on="item_id", how="left", maintain_order="left")
        of_user = {example.user_id: example.split for example in examples}
        ids = pl.Series("user_id", list(self._histories), dtype=pl.String)
        self._table = (
            pl.DataFrame({"user_id": ids, "split": [of_user[user] for user in ids]})
            .with_columns(words=self._words(), order=pl.col("split").replace_strict(SPLITS, range(len(SPLITS))))
            .sort("order", "user_id")
        )

    def __contains__(self, user_id: object) -> bool:
        return user_id in self._histories

    def search(self, query: str, limit: int) -> tuple[list[dict[str, Any]], int]:
        """Finds users whose id, or the title of a purchase, contains the query. Case is ignored.

        Args:
            query: Words in this order; an empty query finds everyone.
            limit: The most users to return.

        Returns:
            Id, split, number of purchases and latest title of each user, and the total number found.
        """
        found = self._table.filter(pl.col("words").str.contains(" ".join(query.lower().split()), literal=True))
        return [self._described(*row) for row in found.select("user_id", "split").head(limit).iter_rows()], len(found)

    def open(self, user_id: str) -> dict[str, Any]:
        """A user's histories and their references, longest first, in the form that the page reads."""
        histories = sorted(self._histories[user_id].values(), key=lambda one: len(one.rows), reverse=True)
        return {
            "user_id": user_id,
            "split": self._table.row(by_predicate=pl.col("user_id") == user_id, named=True)["split"],
            "histories": [{"purchases": self._purchases(one.rows), "references": one.references} for one in histories],
        }

    def _described(self, user_id: str, split: str) -> dict[str, Any]:
        rows = max((one.rows for one in self._histories[user_id].values()), key=len)
        latest = self._interactions["title"][int(rows[-1])]
        return {"user_id": user_id, "split": split, "purchases": len(rows), "latest": latest}

    def _purchases(self, rows: np.ndarray) -> list[dict[str, Any]]:
        return [_purchase(row) for row in self._interactions[rows.tolist()].iter_rows(named=True)]

    def _words(self) -> pl.Series:
        """Id and titles of each user, in the order of `_histories`."""
        titles = self._interactions["title"]
        texts = [
            "\n".join([user, *titles.gather(np.unique(np.concatenate([one.rows for one in histories.values()])))])
            for user, histories in self._histories.items()
        ]
        return pl.Series(texts, dtype=pl.String).str.to_lowercase()


def _by_user(examples: Sequence[Example]) -> dict[str, dict[bytes, KnownHistory]]:
    """Each user's distinct histories."""
    users: dict[str, dict[bytes, KnownHistory]] = {}
    for example in examples:
        histories = users.setdefault(example.user_id, {})
        history = histories.setdefault(example.rows.tobytes(), KnownHistory(example.rows))
        history.references[example.feature] = example.text
    return users


def _purchase(row: Mapping[str, Any]) -> dict[str, Any]:
    time = row["timestamp"]
    day = None if time is None else datetime.fromtimestamp(time, UTC).date().isoformat()
    kept = {name: row[name] for name in ("item_id", "title", "category", "rating", "review_title")}
    return {**kept, "review": row["review_text"], "day": day}
