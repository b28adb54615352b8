"""Validates the tables of a source: a bad row is an error, or is dropped and counted."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import polars as pl

from regen.data.tables import (
    CRITIQUES,
    FEATURES,
    INTERACTIONS,
    ITEMS,
    LINE,
    MAX_RATING,
    NARRATIVE_KEY,
    NARRATIVES,
    POSITION,
    DataError,
    OnBadRow,
    Tables,
    nearest,
    sort_interactions,
)
from regen.data.times import read_times, times_in_units


def validate(
    tables: Tables,
    *,
    on_bad_row: OnBadRow,
    origin: str | Mapping[str, str],
    add_missing_items: bool = False,
    max_rating: float = MAX_RATING,
) -> tuple[Tables, dict[str, int]]:
    """Checks the tables, drops helper columns and sorts the rows.

    Times and ratings may be texts. Ratings are scaled to a maximum of 5.

    Args:
        tables: Tables as read from the files. Each may have a `line` column.
        on_bad_row: `error` raises at the first kind of bad row, `skip` drops and counts bad rows.
        origin: File names for error messages: one text, or one per table name.
        add_missing_items: Add an item without a title for each unknown item id, instead of rejecting the interaction.
        max_rating: Highest rating of the scale.

    Returns:
        The tables, which do not depend on the order of the files, and counts: `<table>.read`, `<table>.kept`,
        `<table>.dropped.<reason>` and `items.added`. Of the kept rows, also `<table>.times_in_<unit>` and
        `interactions.rating_of_zero`.

    Raises:
        DataError: If a row is bad and `on_bad_row` is `error`, or if no interaction is left.
    """
    if on_bad_row not in ("error", "skip"):
        raise ValueError(f"source.on_bad_row={on_bad_row!r}: it is 'error' or 'skip'.")
    if not 0 < max_rating < math.inf:
        raise ValueError(f"source.max_rating={max_rating}: the best rating has to be above 0.")
    judge = _Judge(on_bad_row, origin)
    items = _check_items(judge.open("items", tables.items, ITEMS), judge)
    interactions = judge.open("interactions", tables.interactions, INTERACTIONS)
    if add_missing_items:
        items = _add_missing_items(items, interactions, judge.counts)
    interactions = _check_ratings(interactions, judge, max_rating)
    interactions = _check_interactions(interactions, items, judge)
    if interactions.is_empty():
        raise DataError(
            f"{judge.origin_of('interactions')}: 0 interactions are left of {tables.interactions.height:,} rows; "
            "at least one is needed. Check that the source reads the right file."
        )
    narratives = judge.open("narratives", tables.narratives, NARRATIVES)
    narratives = _check_narratives(narratives, interactions, judge)
    for name, rows in (("interactions", interactions), ("narratives", narratives)):  # of the rows that are kept
        judge.counts |= times_in_units(name, rows["time_unit"])
    if zeros := int(interactions["rating_of_zero"].sum()):
        judge.counts["interactions.rating_of_zero"] = zeros
    critiques = tables.critiques
    if critiques is not None:
        critiques = _check_critiques(judge.open("critiques", critiques, CRITIQUES), interactions, judge)
    checked = Tables(
        items=items.select(ITEMS.names()).sort("item_id"),
        interactions=sort_interactions(interactions).select(INTERACTIONS.names()),
        narratives=narratives.select(NARRATIVES.names()).sort(NARRATIVE_KEY),
        planted=tables.planted,
        critiques=critiques,
    )
    kept = {"items": checked.items, "interactions": checked.interactions, "narratives": checked.narratives}
    kept |= {} if critiques is None else {"critiques": critiques}
    return checked, judge.counts | {f"{name}.kept": table.height for name, table in kept.items()}


_TIMES = "give seconds since 1970 (or milli-, micro- or nanoseconds), or an ISO 8601 date."
_Fix = Callable[[dict[str, Any]], str]  # from the first bad row to a sentence for the message


class _Judge:
    """Turns bad rows into an error or into a count."""

    def __init__(self, on_bad_row: OnBadRow, origin: str | Mapping[str, str]) -> None:
        self.on_bad_row = on_bad_row
        self.origin = origin
        self.counts: dict[str, int] = {}

    def origin_of(self, table: str) -> str:
        """Name of a table's file in messages."""
        return self.origin if isinstance(self.origin, str) else self.origin.get(table, table)

    def open(self, table: str, rows: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
        """Counts the rows, casts the columns, sets blank texts to null and rejects bad times."""
        missing = [name for name in schema.names() if name not in rows.columns]
        if missing:
            raise DataError(f"{self.origin_of(table)}: the {table} have no column {', '.join(map(repr, missing))}.")
        self.counts[f"{table}.read"] = rows.height
        rows = rows.select([*schema.names(), *(name for name in (LINE, POSITION) if name in rows.columns)])
        if "timestamp" in schema:
            rows = self._with_times(table, rows)
        types: dict[Any, Any] = {
            name: dtype for name, dtype in schema.items() if name != "rating"
        }  # see _check_ratings
        texts = [name for name, dtype in schema.items() if dtype == pl.String]
        present = pl.col(texts).str.strip_chars() != ""
        return rows.cast(types).with_columns(pl.when(present).then(pl.col(texts)))

    def _with_times(self, table: str, rows: pl.DataFrame) -> pl.DataFrame:
        seconds, bad, units = read_times(rows["timestamp"])
        good = self.reject(
            table,
            rows.with_columns(seconds.alias("seconds"), bad.alias("bad"), units),
            pl.col("bad"),
            reason="bad_time",
            says="have a timestamp that is not a time before 2100",
            fix=lambda row: f"It is {str(row['timestamp']).rstrip('.')!r}; {_TIMES}",
        )
        return good.with_columns(timestamp="seconds").drop("seconds", "bad")

    def reject(
        self, table: str, rows: pl.DataFrame, bad: pl.Expr, *, reason: str, says: str, fix: _Fix | None = None
    ) -> pl.DataFrame:
        """Raises for, or drops, the rows where `bad` is true."""
        mask = rows.select(bad.fill_null(False).alias("bad"))["bad"]
        count = int(mask.sum())
        if not count:
            return rows
        if self.on_bad_row == "error":
            first = rows.filter(mask)
            row = (first.sort(LINE) if LINE in rows.columns else first).row(0, named=True)
            raise DataError(
                f"{self.origin_of(table)}: {count:,} of {rows.height:,} {table} {says}; the first is "
                f"{f'line {row[LINE]}' if LINE in row else _shown(row)}. {fix(row) + ' ' if fix else ''}"
                "Set source.on_bad_row=skip to drop them."
            )
        self.counts[f"{table}.dropped.{reason}"] = count
        return rows.filter(~mask)


def _shown(row: Mapping[str, object], limit: int = 60) -> str:
    """A row in a message: the columns with a value, long values truncated."""
    values = {key: repr(value) for key, value in row.items() if value is not None}
    return ", ".join(f"{key}={text if len(text) <= limit else text[: limit - 1] + '…'}" for key, text in values.items())


def _not_finite(column: str) -> pl.Expr:
    return pl.col(column).is_nan() | pl.col(column).is_infinite()


def _repeats(*columns: str) -> pl.Expr:
    """Mask of the rows that repeat an earlier one in these columns; null equals null."""
    return ~pl.struct(columns).is_first_distinct()


def _check_items(items: pl.DataFrame, judge: _Judge) -> pl.DataFrame:
    reject = partial(judge.reject, "items")
    rows = reject(items, pl.col("item_id").is_null(), reason="no_item_id", says="have no 'item_id'")
    rows = reject(rows, _not_finite("price"), reason="bad_price", says="have a price of NaN or infinity")
    # Content decides which repeated row is kept, not the order in the file; a row with a title comes first.
    rows = rows.sort(ITEMS.names(), nulls_last=True, maintain_order=True)
    return reject(
        rows,
        _repeats("item_id"),
        reason="repeated_id",
        says="repeat an 'item_id'",
        fix=lambda row: f"It is {row['item_id']!r}.",
    )


def _add_missing_items(items: pl.DataFrame, interactions: pl.DataFrame, counts: dict[str, int]) -> pl.DataFrame:
    """Adds a row without a title for each item that occurs in interactions only."""
    known = interactions.select("item_id").drop_nulls().unique()
    missing = known.join(items, on="item_id", how="anti")
    counts["items.added"] = missing.height
    return pl.concat([items, missing], how="diagonal")


def _check_ratings(interactions: pl.DataFrame, judge: _Judge, most: float) -> pl.DataFrame:
    """Converts ratings to numbers up to 5. A rating of 0 means no rating in many data sets; it becomes null."""
    number = pl.col("rating").cast(pl.Float64, strict=False)
    unreadable = pl.col("rating").is_not_null() & number.is_null()
    rows = judge.reject(
        "interactions",
        interactions,
        unreadable | ~number.is_finite() | (number < 0) | (number > most),
        reason="bad_rating",
        says=f"have a rating that is not a number from 0 to {most:g}",
        fix=lambda row: (
            f"It is {row['rating']!r}. Write null for an unknown rating. Set source.max_rating if your scale has "
            "another maximum."
        ),
    )
    return rows.with_columns(rating=pl.when(number > 0).then(number * (MAX_RATING / most)), rating_of_zero=number == 0)


def _check_interactions(interactions: pl.DataFrame, items: pl.DataFrame, judge: _Judge) -> pl.DataFrame:
    rows, reject = interactions, partial(judge.reject, "interactions")
    for column in ("user_id", "item_id"):
        rows = reject(rows, pl.col(column).is_null(), reason=f"no_{column}", says=f"have no {column!r}")
    columns = INTERACTIONS.names()
    rows = reject(rows, _repeats(*columns), reason="repeated", says="repeat another one in every column")
    return reject(
        rows,
        ~pl.col("item_id").is_in(items["item_id"].implode()),
        reason="unknown_item",
        says="have an item that is not among the items",
        fix=lambda row: f"It is {row['item_id']!r}; add an item of that id.",
    )


def _check_narratives(narratives: pl.DataFrame, interactions: pl.DataFrame, judge: _Judge) -> pl.DataFrame:
    rows, reject = narratives, partial(judge.reject, "narratives")
    for column in ("user_id", "feature", "text"):
        rows = reject(rows, pl.col(column).is_null(), reason=f"no_{column}", says=f"have no {column!r}")
    rows = reject(
        rows,
        ~pl.col("feature").is_in(FEATURES),
        reason="unknown_feature",
        says="have an unknown feature",
        fix=lambda row: f"There is no feature {row['feature']!r}. {nearest(row['feature'], FEATURES)}",
    )
    rows = reject(
        rows,
        pl.col("item_id").is_null() & pl.col("timestamp").is_not_null(),
        reason="time_without_item",
        says="have a timestamp but no 'item_id'",
        fix=lambda row: "Give both, or neither for a text about the whole user.",
    )
    rows = reject(
        rows,
        ~pl.col("user_id").is_in(interactions["user_id"].unique().implode()),
        reason="unknown_user",
        says="have a user without interactions",
        fix=lambda row: f"It is user {row['user_id']!r}.",
    )
    rows = reject(
        _mark_existing(rows, interactions),
        ~pl.col("exists"),
        reason="unknown_interaction",
        says="are about an interaction that does not exist",
        fix=lambda row: (
            f"User {row['user_id']!r} has none with item {row['item_id']!r} at timestamp {row['timestamp']}."
        ),
    )
    return reject(
        rows.sort(NARRATIVES.names(), maintain_order=True),
        _repeats(*NARRATIVE_KEY),
        reason="repeated",
        says="repeat user, feature and interaction of another one",
        fix=lambda row: f"It is the {row['feature']} of user {row['user_id']!r}.",
    )


def _check_critiques(critiques: pl.DataFrame, interactions: pl.DataFrame, judge: _Judge) -> pl.DataFrame:
    reject = partial(judge.reject, "critiques")
    rows = reject(critiques, pl.col("text").is_null(), reason="no_text", says="have no 'text'")
    bought = interactions.select("user_id", "item_id").unique()
    for item in ("from_item_id", "to_item_id"):
        known = bought.rename({"item_id": item}).with_columns(known=True)
        rows = reject(
            rows.join(known, on=["user_id", item], how="left", maintain_order="left"),
            pl.col("known").is_null(),
            reason=f"unknown_{item}",
            says=f"have a {item!r} that their user did not buy",
        ).drop("known")
    rows = rows.sort(CRITIQUES.names(), maintain_order=True)
    rows = reject(rows, _repeats("user_id", "to_item_id"), reason="repeated", says="lead a user to an item once more")
    return rows.select(CRITIQUES.names()).sort("user_id", "timestamp", "to_item_id")


def _mark_existing(narratives: pl.DataFrame, interactions: pl.DataFrame) -> pl.DataFrame:
    """Adds `exists`: the narrative is about no interaction, or about an existing one (its time may be null)."""
    pairs = interactions.select("user_id", "item_id").unique().with_columns(has_pair=True)
    times = interactions.select("user_id", "item_id", "timestamp").drop_nulls().unique().with_columns(has_time=True)
    marked = narratives.join(pairs, on=["user_id", "item_id"], how="left").join(
        times, on=["user_id", "item_id", "timestamp"], how="left"
    )
    exists = pl.when(pl.col("timestamp").is_null()).then(pl.col("has_pair")).otherwise(pl.col("has_time"))
    return marked.with_columns(exists=pl.col("item_id").is_null() | exists.fill_null(False))
