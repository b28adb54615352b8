"""Source `amazon2018`: Amazon Product Reviews of 2018 (Ni, Li and McAuley 2019), as published, for any vertical.

Two files a vertical: reviews (`<Vertical>_5.json.gz`, users and items with five or more) and metadata
(`meta_<Vertical>.json.gz`). Histories are those of paper 3.2: reviews per user by time, items without a usable title
dropped, the latest 50 kept. The files are streamed; texts are held for one range of users at a time.
"""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from regen.data.cleaning import clean_text, clean_titles, join_categories, parse_prices, unreadable
from regen.data.download import fetch
from regen.data.json_lines import JsonLines, whole_lines
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, DataError, sort_interactions
from regen.data.times import read_times, times_in_units

logger = logging.getLogger(__name__)

DAY = 86_400  # seconds; the files know times to the day
RANGE_BYTES = 500 * 2**20  # of unpacked text whose users are sorted in memory at once
_UNPACKED = 3.5  # bytes per byte of gzip in these files
_REVIEWS = pl.Schema(
    {
        "reviewerID": pl.String(),
        "asin": pl.String(),
        "unixReviewTime": pl.Float64(),
        "overall": pl.Float64(),
        "summary": pl.String(),
        "reviewText": pl.String(),
    }
)
_METADATA = pl.Schema(
    {
        "asin": pl.String(),
        "title": pl.String(),
        "description": pl.List(pl.String()),
        "category": pl.List(pl.String()),
        "price": pl.String(),
        "brand": pl.String(),
    }
)


class AmazonSource:
    """Reads one vertical.

    Args:
        reviews: Path or URL of the reviews.
        metadata: Path or URL of the metadata.
        folder: Looked into first for a file of a URL's name; files that are not there are fetched into the user cache.
        max_history: How many of a user's interactions stay, the latest ones.
        collapse_copies: Keep one of the interactions of a user with the same rating, title and text on the same day:
            Amazon shows one review under all variants of a listing.
    """

    def __init__(
        self, *, reviews: str, metadata: str, folder: str | None, max_history: int, collapse_copies: bool
    ) -> None:
        if max_history < 1:
            raise ValueError(f"source.max_history={max_history} has to be at least 1.")
        self.locations = {"source.reviews": reviews, "source.metadata": metadata}
        self.folder = None if folder is None else Path(folder)
        self.max_history = max_history
        self.collapse_copies = collapse_copies

    def files(self) -> dict[str, Path]:
        """Reviews and metadata, fetched if need be."""
        return {
            key.removeprefix("source."): fetch(location, setting=key, folder=self.folder)
            for key, location in self.locations.items()
        }

    def write(self, folder: Path) -> dict[str, int]:
        """Writes the three tables; `narratives` is empty, a narrator fills it.

        Raises:
            DataError: If a file is damaged, or nothing is left of it.
        """
        reviews, metadata = self.files().values()
        _check_layout(reviews)
        spill = folder / ".ranges"
        spill.mkdir()
        ranges = UserRanges(spill, count=_range_count(reviews))
        counts: dict[str, int] = {}
        items_seen: set[str] = set()
        for chunk in _read_reviews(reviews, counts):
            items_seen.update(chunk["item_id"].unique())
            ranges.add(chunk)
        items = _read_items(metadata, items_seen, counts)
        kept_items: set[str] = set()
        with ParquetParts(folder / "interactions.parquet") as parts:
            for rows in ranges:
                histories = self._histories(rows, items, counts)
                kept_items.update(histories["item_id"].unique())
                parts.add(histories)
        spill.rmdir()
        counts["users.read"] = ranges.users
        counts["users.dropped.no_interaction_left"] = ranges.users - counts.get("users.kept", 0)
        if not parts.rows:
            raise DataError(
                f"{reviews}: 0 interactions are left of {counts['interactions.read']:,} reviews; at least one is "
                f"needed. Check that {metadata} is the metadata of the same vertical."
            )
        counts["items.dropped.no_interaction_left"] = items["title"].count() - len(kept_items)
        items = items.filter(pl.col("item_id").is_in(kept_items)).sort("item_id")
        counts["items.without_price"] = items["price"].null_count()
        counts["items.with_unreadable_price"] = int(items["unreadable_price"].sum())
        items = items.drop("unreadable_price")
        items.write_parquet(folder / "items.parquet")
        NARRATIVES.to_frame().write_parquet(folder / "narratives.parquet")
        return counts | {"items.kept": len(items), "interactions.kept": parts.rows}

    def _histories(self, rows: pl.DataFrame, items: pl.DataFrame, counts: dict[str, int]) -> pl.DataFrame:
        """The interactions of a range of users that histories may hold, sorted."""

        def drop(rows: pl.DataFrame, bad: pl.Expr, reason: str) -> pl.DataFrame:
            kept = rows.filter(~bad)
            key = f"interactions.dropped.{reason}"
            counts[key] = counts.get(key, 0) + len(rows) - len(kept)
            return kept

        titled = items.filter(pl.col("title").is_not_null())["item_id"].implode()
        rows = drop(rows, ~pl.col("item_id").is_in(items["item_id"].implode()), "item_without_metadata")
        rows = sort_interactions(drop(rows, ~pl.col("item_id").is_in(titled), "item_without_title"))
        rows = drop(rows, ~pl.struct(INTERACTIONS.names()).is_first_distinct(), "repeated")
        if self.collapse_copies:
            review = pl.struct("user_id", pl.col("timestamp") // DAY, "rating", "review_title", "review_text")
            said = pl.any_horizontal(pl.col("review_title", "review_text").is_not_null())
            dated = pl.col("timestamp").is_not_null()
            rows = drop(rows, said & dated & ~review.is_first_distinct(), "copied_review")
        newer = pl.int_range(pl.len(), dtype=pl.Int64).reverse().over("user_id")
        rows = drop(rows, newer >= self.max_history, f"before_the_latest_{self.max_history}")
        ends = rows.group_by("user_id").agg(
            tie=pl.col("timestamp").tail(2).n_unique() < pl.col("timestamp").tail(2).len()
        )
        noted = {
            "users.kept": len(ends),
            "users.last_purchase_ties": int(ends["tie"].sum()),
            "interactions.without_text": rows["review_text"].null_count(),
            "interactions.without_time": rows["timestamp"].null_count(),
            "interactions.without_rating": rows["rating"].null_count(),
            "interactions.with_bad_time": int(rows["bad_time"].sum()),
            **times_in_units("interactions", rows["time_unit"]),
        }
        for name, count in noted.items():
            counts[name] = counts.get(name, 0) + count
        return rows.select(INTERACTIONS.names())


class UserRanges:
    """Interactions gathered by ranges of user ids, so that one range at a time can be sorted in memory.

    All rows are counted by user before the ranges are set, so that each has about as many, whatever the file's order.

    Args:
        folder: Where rows wait.
        count: How many ranges.
    """

    def __init__(self, folder: Path, *, count: int) -> None:
        self.folder = folder
        self.count = count
        self._chunks: list[Path] = []
        self._rows = pl.DataFrame(schema={"user_id": pl.String(), "rows": pl.UInt32()})  # of each user

    @property
    def users(self) -> int:
        """How many users the rows are of."""
        return len(self._rows)

    def add(self, rows: pl.DataFrame) -> None:
        """Takes rows of any users."""
        self._chunks.append(self.folder / f"chunk-{len(self._chunks):06}.arrow")
        rows.write_ipc(self._chunks[-1], compression="lz4")
        counted = rows.group_by("user_id").agg(rows=pl.len())
        self._rows = pl.concat([self._rows, counted]).group_by("user_id").agg(pl.col("rows").sum())

    def __iter__(self) -> Iterator[pl.DataFrame]:
        users = self._rows.sort("user_id")
        before = users["rows"].cast(pl.Int64).cum_sum() - users["rows"]
        each = max(1, math.ceil(users["rows"].sum() / self.count))
        ranges = users.select("user_id", range=before // each)
        for at, path in enumerate(self._chunks):
            chunk = _read_rows(path).join(ranges, on="user_id", maintain_order="left")
            for (number,), part in chunk.partition_by("range", as_dict=True, include_key=False).items():
                part.write_ipc(self.folder / f"{number:05}-{at:06}.arrow", compression="lz4")
            path.unlink()
        for number in ranges["range"].unique().sort():
            files = sorted(self.folder.glob(f"{number:05}-*.arrow"))
            yield pl.concat([_read_rows(file) for file in files])
            for file in files:
                file.unlink()


def _read_rows(path: Path) -> pl.DataFrame:
    with path.open("rb") as file:  # Polars would take a path with brackets in it for a pattern
        return pl.read_ipc(file)


class ParquetParts:
    """One Parquet file written part by part."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._writer: Any = None

    def __enter__(self) -> "ParquetParts":
        return self

    def add(self, rows: pl.DataFrame) -> None:
        """Appends rows; all parts have the same columns."""
        import pyarrow.parquet as pq

        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        self._writer = self._writer or pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=2**18)
        self.rows += len(rows)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _range_count(reviews: Path) -> int:
    packed = reviews.suffix == ".gz"
    return max(1, math.ceil(reviews.stat().st_size * (_UNPACKED if packed else 1) / RANGE_BYTES))


def _check_layout(path: Path) -> None:
    """Refuses reviews in the layout of the data set of 2023.

    Raises:
        DataError: Which says what to do.
    """
    if not path.is_file():
        return  # the reader of lines says so
    begin = next(whole_lines(path), b"").split(b"\n", 1)[0]
    try:
        keys = set(json.loads(begin))
    except (ValueError, TypeError):
        return
    if ("parent_asin" in keys and not keys & {"asin", "reviewerID"}) or {"user_id", "parent_asin"} <= keys:
        raise DataError(
            f"{path}: this is the layout of Amazon Reviews 2023 (user_id, parent_asin, timestamp in milliseconds); "
            "source=amazon2018 reads that of 2018 (reviewerID, asin, unixReviewTime). Use source=jsonl for it: write "
            "items.jsonl and interactions.jsonl as regen/data/jsonl.py describes, with parent_asin as item_id."
        )


def _read_reviews(path: Path, counts: dict[str, int]) -> Iterator[pl.DataFrame]:
    """Interactions with plain texts, and `bad_time` and `time_unit` of each; counts what is dropped."""
    lines = JsonLines(path, _REVIEWS)
    dropped = dict.fromkeys(("no_user_id", "no_item_id"), 0)
    for chunk in lines.chunks():
        seconds, bad, units = read_times(chunk["unixReviewTime"])
        rows = chunk.select(
            user_id=pl.col("reviewerID").str.strip_chars(),
            item_id=pl.col("asin").str.strip_chars(),
            timestamp=seconds,
            rating=pl.when(pl.col("overall").is_between(1, 5)).then("overall"),
            review_title=clean_text(chunk["summary"]),
            review_text=clean_text(chunk["reviewText"]),
            bad_time=bad,
            time_unit=units,
        )
        for column in ("user_id", "item_id"):
            kept = rows.filter(pl.col(column).is_not_null() & (pl.col(column) != ""))
            dropped[f"no_{column}"] += len(rows) - len(kept)
            rows = kept
        if not rows.is_empty():
            yield rows
    counts["interactions.read"] = lines.lines
    counts["interactions.dropped.malformed_line"] = lines.malformed
    counts.update({f"interactions.dropped.{name}": count for name, count in dropped.items()})


def _read_items(path: Path, seen: set[str], counts: dict[str, int]) -> pl.DataFrame:
    """The items that somebody reviewed, each once, whether their title is usable or not."""
    lines = JsonLines(path, _METADATA)
    wanted = pl.Series(sorted(seen), dtype=pl.String).implode()
    schema = pl.Schema({**ITEMS, "unreadable_price": pl.Boolean()})
    chunks, matched = [schema.to_frame()], 0
    for chunk in lines.chunks():
        rows = chunk.with_columns(item_id=pl.col("asin").str.strip_chars()).filter(pl.col("item_id").is_in(wanted))
        matched += len(rows)
        price = parse_prices(rows["price"])
        chunks.append(
            rows.select(
                "item_id",
                title=clean_titles(rows["title"]),
                description=clean_text(rows["description"].list.join(" ", ignore_nulls=True)),
                category=join_categories(rows["category"]),
                price=price,
                brand=clean_titles(rows["brand"]),
                unreadable_price=unreadable(rows["price"], price),
            )
        )
    found = pl.concat(chunks).sort(ITEMS.names(), nulls_last=True)
    # of repeated rows the one with a title; which of several depends on their content, not on the file's order
    items = found.sort("item_id", pl.col("title").is_null(), maintain_order=True).unique(
        "item_id", keep="first", maintain_order=True
    )
    counts["items.read"] = lines.lines
    counts["items.dropped.malformed_line"] = lines.malformed
    counts["items.dropped.never_reviewed"] = lines.lines - lines.malformed - matched
    counts["items.dropped.repeated_id"] = len(found) - len(items)
    counts["items.dropped.no_usable_title"] = items["title"].null_count()
    counts["items.reviewed_without_metadata"] = len(seen) - len(items)
    return items
