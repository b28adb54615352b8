"""Filters interactions to their k-core: every user has at least k items, every item at least k users."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, UInt32

from regen.data.id_ranges import read_rows


def in_core(
    parts: Iterable[pl.DataFrame], item_ids: pl.Series, core: int, folder: Path, counts: dict[str, int]
) -> Iterator[pl.DataFrame]:
    """Drops users with fewer than `core` items and items with fewer than `core` users, until none are left.

    The rows are kept on disk. Memory holds two numbers per pair of user and item.

    Args:
        parts: Interactions sorted by user. All rows of a user are in one part.
        item_ids: All items of the interactions.
        core: Minimum number of different items per user and of different users per item.
        folder: For temporary files.
        counts: The number of dropped interactions is added here.
    """
    numbers = pl.DataFrame({"item_id": item_ids}).with_row_index("_item")
    pairs = [pl.Schema({"_user": pl.UInt32(), "_item": pl.UInt32()}).to_frame()]
    paths: list[Path] = []
    users = 0
    for rows in parts:
        if rows.is_empty():
            continue
        numbered = rows.join(numbers, on="item_id", how="left", maintain_order="left").with_columns(
            _user=pl.col("user_id").rle_id() + users
        )
        users = numbered["_user"][-1] + 1
        pairs.append(numbered.select("_user", "_item").unique())
        paths.append(folder / f"part-{len(paths):06}.arrow")
        numbered.write_ipc(paths[-1], compression="lz4")
        del rows, numbered  # free the memory before the next part is made
    user, item = (column.to_numpy() for column in pl.concat(pairs))
    of_users, of_items = core_of(user, item, core)
    key = f"interactions.dropped.outside_the_{core}_core"
    counts[key] = 0
    for path in paths:
        rows = read_rows(path)
        path.unlink()
        kept = rows.filter(of_users[rows["_user"].to_numpy()] & of_items[rows["_item"].to_numpy()])
        counts[key] += len(rows) - len(kept)
        del rows
        yield kept.drop("_user", "_item")


def core_of(
    user: UInt32[np.ndarray, " pairs"], item: UInt32[np.ndarray, " pairs"], core: int
) -> tuple[Bool[np.ndarray, " users"], Bool[np.ndarray, " items"]]:
    """Masks of the users and items in the k-core of distinct pairs."""
    users, items = (int(numbers.max(initial=0)) + 1 for numbers in (user, item))
    while True:
        of_users = np.bincount(user, minlength=users) >= core
        of_items = np.bincount(item, minlength=items) >= core
        kept = of_users[user] & of_items[item]
        if kept.all():
            return of_users, of_items
        user, item = user[kept], item[kept]
