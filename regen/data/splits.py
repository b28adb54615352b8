"""Splits of the narratives into training, validation and test.

`users` (paper 5.1) splits by a hash of the user id, so users keep their split when rows are added. `file` reads lists
of user ids. `time` splits the targets at two points in time; fitted data and histories end before these points.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import polars as pl

from regen.config.schema import FileSplit, Split, TimeSplit, UsersSplit
from regen.data.tables import ITEM_FEATURES, DataError, Tables
from regen.data.times import seconds_of

NAMES = ("train", "validation", "test")


def split_of(user_ids: pl.Series, split: Split) -> pl.Series:
    """`train`, `validation` or `test` for each user; null for users in no list.

    Args:
        user_ids: Any users, in any order.
        split: A split by users or by file.

    Raises:
        ValueError: If the shares leave nothing to train on, or the split is by time, which does not assign users.
        DataError: If a list is missing or a user is in two lists.
    """
    distinct = user_ids.unique()
    if isinstance(split, FileSplit):
        names, others = _listed(split), None if split.lists_training_users else "train"
        drawn: Sequence[str | None] = [names.get(user, others) for user in distinct.to_list()]
    elif isinstance(split, UsersSplit):
        drawn = _hashed(distinct.to_list(), split)
    else:
        raise ValueError("split=time splits narratives, not users. Use split=users or split=file here.")
    table = pl.DataFrame({"user_id": distinct, "split": pl.Series(drawn, dtype=pl.String)})
    return user_ids.to_frame("user_id").join(table, on="user_id", how="left", maintain_order="left")["split"]


def split_narratives(tables: Tables, split: Split) -> pl.Series:
    """`train`, `validation` or `test` for each row of the narratives; null for rows in no split.

    Args:
        tables: Prepared tables.
        split: Any split.

    Raises:
        ValueError: As for `split_of`.
        DataError: If a split by time finds a purchase without a time.
    """
    if not isinstance(split, TimeSplit):
        return split_of(tables.narratives["user_id"], split)
    validation_from, test_from = points(tables, split)
    time = pl.col("time")
    names = pl.when(time >= test_from).then(pl.lit("test")).when(time >= validation_from).then(pl.lit("validation"))
    named = names.when(time.is_not_null()).then(pl.lit("train")).alias("split")
    return _times(tables).to_frame("time").select(named)["split"]


def fitted_interactions(tables: Tables, split: Split) -> pl.Series:
    """Mask of the interactions that a model may be fitted on: of training users, or before validation starts."""
    if isinstance(split, TimeSplit):
        return tables.interactions["timestamp"] < points(tables, split)[0]
    return (split_of(tables.interactions["user_id"], split) == "train").fill_null(False)


def history_ends(tables: Tables, split: Split) -> dict[str, int]:
    """Times at which validation and test histories end, in seconds since 1970; empty unless the split is by time."""
    return dict(zip(NAMES[1:], points(tables, split), strict=True)) if isinstance(split, TimeSplit) else {}


def points(tables: Tables, split: TimeSplit) -> tuple[int, int]:
    """Start of validation and of test, in seconds since 1970.

    Raises:
        DataError: If a purchase has no time, or no narrative is about a purchase.
        ValueError: If a setting is not a date, or validation does not start before test.
    """
    if missing := tables.interactions["timestamp"].null_count():
        raise DataError(f"split=time: {missing:,} of {len(tables.interactions):,} purchases have no time.")
    times = _times(tables).filter(tables.narratives["item_id"].is_not_null()).drop_nulls().sort()
    if times.is_empty():
        raise DataError(
            f"split=time: 0 of {len(tables.narratives):,} narratives are about a purchase (have an item_id), so none "
            f"has a time. Use one of {', '.join(ITEM_FEATURES)}, or split=users."
        )
    found = []
    for name, after in (("validation_from", split.validation + split.test), ("test_from", split.test)):
        date = getattr(split, name)
        found.append(
            seconds_of(date, setting=f"split.{name}") if date is not None else int(times[int((1 - after) * len(times))])
        )
    if found[0] >= found[1]:
        starts, (first, last) = map(_moment, found), map(_moment, (times[0], times[-1]))
        validation, test = (
            f"{start} (split.{name}={getattr(split, name)}, split.{share}={getattr(split, share)})"
            for start, name, share in zip(starts, ("validation_from", "test_from"), NAMES[1:], strict=True)
        )
        raise ValueError(
            f"split=time: validation would start at {validation} and test at {test}; validation has to start before "
            f"test. The narratives are about purchases from {first} to {last}. Set split.validation_from and "
            "split.test_from to two dates between, or use split=users."
        )
    return found[0], found[1]


def _times(tables: Tables) -> pl.Series:
    """Time of each narrative; without a time of its own, that of the user's latest purchase of its item."""
    bought = tables.interactions.group_by("user_id", "item_id").agg(pl.col("timestamp").max().alias("bought"))
    known = tables.narratives.join(bought, on=("user_id", "item_id"), how="left", maintain_order="left")
    return known.select(pl.coalesce("timestamp", "bought"))["timestamp"]


def _moment(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def described(split: Split) -> str:
    """Short description of the split, for manifests and captions."""
    if isinstance(split, UsersSplit | TimeSplit):
        of = "distinct users" if isinstance(split, UsersSplit) else "time"
        return f"by {of}, validation {split.validation:.0%}, test {split.test:.0%}"
    return "by lists of users"


def check_shares(split: Split) -> None:
    """Checks the shares of a split.

    Raises:
        ValueError: If they leave nothing to train on.
    """
    if not isinstance(split, UsersSplit | TimeSplit):
        return
    validation, test = split.validation, split.test
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"split.validation={validation} and split.test={test} have to be shares of at least 0 whose sum is below 1."
        )


def _hashed(users: list[str], split: UsersSplit) -> list[str]:
    check_shares(split)
    names = []
    for user in users:
        digest = hashlib.blake2b(f"{split.salt}\0{user}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        names.append(
            "test" if place < split.test else "validation" if place < split.test + split.validation else "train"
        )
    return names


def _listed(split: FileSplit) -> dict[str, str]:
    """The split of each user in `validation.txt`, `test.txt` and, if it exists, `train.txt`."""
    found: dict[str, str] = {}
    for name, path in split.lists.items():
        if not path.is_file():
            raise DataError(
                f"split=file: there is no {path}. It should list the ids of the {name} users, one per line."
            )
        for user in path.read_text(encoding="utf-8").split("\n"):
            if user and found.setdefault(user, name) != name:
                raise DataError(f"{path}: user {user!r} is in the {found[user]} list as well.")
    return found
