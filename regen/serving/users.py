"""The users of a prepared data set, with histories as training reads them."""

from pathlib import Path
from typing import Self

import polars as pl

from regen.data.prepare import load_tables
from regen.data.tables import Tables
from regen.serving.interactions import Interaction
from regen.storage.artefacts import open_artefact


class Users:
    """Purchase histories by user, without items that have no title (paper 3.2).

    Args:
        tables: Prepared tables.
        latest: The most interactions of a history.
    """

    def __init__(self, tables: Tables, *, latest: int) -> None:
        titled = tables.items.filter(pl.col("title").is_not_null()).select("item_id")
        self._rows = tables.interactions.join(titled, on="item_id", how="semi", maintain_order="left")
        counts = self._rows.group_by("user_id", maintain_order=True).len()  # the rows of a user are adjacent
        ends = counts["len"].cum_sum()
        self._spans = dict(zip(counts["user_id"], zip(ends - counts["len"], ends, strict=True), strict=True))
        self._latest = latest

    @classmethod
    def of_artefact(cls, folder: Path, *, fingerprint: str, latest: int) -> Self:
        """Loads the users of a prepared artefact.

        Args:
            folder: Folder of the artefact.
            fingerprint: Fingerprint of the data that the model was trained on.
            latest: The most interactions of a history.

        Raises:
            FileNotFoundError: If there is no such artefact.
            ValueError: If it is damaged, or has another fingerprint.
        """
        artefact = open_artefact(folder)
        if artefact.fingerprint != fingerprint:
            raise ValueError(
                f"data={folder} is {artefact.fingerprint}, and the model was trained on {fingerprint}: its item ids "
                "and factors belong to that version of the data. Give its folder, or another checkpoint."
            )
        return cls(load_tables(artefact.path), latest=latest)

    def __len__(self) -> int:
        return len(self._spans)

    def history(self, user_id: str) -> list[Interaction] | None:
        """The user's latest interactions, oldest first; None for an unknown user."""
        if user_id not in self._spans:
            return None
        start, end = self._spans[user_id]
        first = max(start, end - self._latest)
        return [
            Interaction(
                item_id=row["item_id"],
                rating=row["rating"],
                review=row["review_text"],
                review_title=row["review_title"],
            )
            for row in self._rows[first:end].iter_rows(named=True)
        ]
