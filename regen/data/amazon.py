"""Source `amazon2018`: Amazon Product Reviews 2018 (Ni, Li and McAuley 2019), as published, for any vertical.

A vertical has two files: reviews (`<Vertical>_5.json.gz`, the 5-core) and metadata (`meta_<Vertical>.json.gz`).
Histories follow paper 3.2: a user's reviews by time, without items that have no usable title, the latest 50 kept. The
files are streamed; memory holds the texts of one range of users or items at a time.

`regen.data.amazon2023` reads the files of 2023 with the same code. `regen.data.amazon_layouts` lists the differences.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import polars as pl

from regen.data.amazon_layouts import AMAZON_2018, Layout, check_layout
from regen.data.amazon_rows import one_row_each, read_items, read_reviews
from regen.data.core import in_core
from regen.data.download import fetch
from regen.data.id_ranges import IdRanges, ParquetParts
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, DataError, sort_interactions
from regen.data.times import TimeWindow, times_in_units

DAY = 86_400  # seconds; copies of a review have the same day


class AmazonSource:
    """Reads one vertical.

    Args:
        reviews: Path or URL of the reviews.
        metadata: Path or URL of the metadata.
        folder: Searched first for the file name of a URL. Other files are downloaded into the user cache.
        max_history: Number of interactions to keep per user, the latest ones.
        collapse_copies: Keep one of a user's interactions with the same rating, title and text on the same day.
            Amazon shows one review under all variants of a listing.
        core: Keep users with at least this many different items and items with at least this many different users.
            Applied after all other filters, but before `max_history`.
        since: Drop interactions before this date.
        until: Drop interactions from this date on.
    """

    layout: ClassVar[Layout] = AMAZON_2018

    def __init__(
        self,
        *,
        reviews: str,
        metadata: str,
        folder: str | None,
        max_history: int,
        collapse_copies: bool,
        core: int | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> None:
        if max_history < 1:
            raise ValueError(f"source.max_history={max_history} has to be at least 1.")
        self.locations = {"source.reviews": reviews, "source.metadata": metadata}
        self.folder = None if folder is None else Path(folder)
        self.max_history = max_history
        self.collapse_copies = collapse_copies
        self.core = core
        self.window = TimeWindow.between(since, until, setting="source")

    def files(self) -> dict[str, Path]:
        """Reviews and metadata, downloaded if necessary."""
        return {
            key.removeprefix("source."): fetch(location, setting=key, folder=self.folder, page=self.layout.page)
            for key, location in self.locations.items()
        }

    def write(self, folder: Path) -> dict[str, int]:
        """Writes the three tables; `narratives` is empty.

        Raises:
            DataError: If a file is damaged, or no interaction is left.
        """
        files = self.files()
        for role, path in files.items():
            check_layout(path, role, self.layout)
        counts: Counter[str] = Counter()
        spill = folder / ".ranges"
        spill.mkdir()
        ranges, of_items = IdRanges(spill / "users", "user_id"), IdRanges(spill / "items", "item_id")
        seen: set[str] = set()
        for chunk in read_reviews(files["reviews"], self.layout, self.window, counts):
            seen.update(chunk["item_id"].unique())
            ranges.add(chunk)
        items = read_items(files["metadata"], self.layout, seen, of_items, counts)
        kept_items: set[str] = set()
        parts: Iterator[pl.DataFrame] = (self._clean(rows, items, counts) for rows in ranges)
        if self.core is not None:
            parts = in_core(parts, items["item_id"], self.core, spill, counts)
        with ParquetParts(folder / "interactions.parquet") as table:
            for rows in parts:
                histories = self._latest(rows, counts)
                kept_items.update(histories["item_id"].unique())
                table.add(histories)
        counts["users.read"] = len(ranges)
        counts["users.dropped.no_interaction_left"] = len(ranges) - counts["users.kept"]
        if not table.rows:
            raise DataError(self._nothing_left(files, counts))
        counts["items.dropped.no_interaction_left"] = int(items["titled"].sum()) - len(kept_items)
        _write_items(of_items, kept_items, folder, counts)
        spill.rmdir()
        NARRATIVES.to_frame().write_parquet(folder / "narratives.parquet")
        counts["interactions.kept"] = table.rows
        return dict(counts)

    def _nothing_left(self, files: dict[str, Path], counts: Counter[str]) -> str:
        core = "" if self.core is None else f", and lower source.core={self.core}"
        window = f", and check the time window ({self.window})" if self.window else ""
        return (
            f"{files['reviews']}: 0 interactions are left of {counts['interactions.read']:,} reviews; at least one is "
            f"needed. Check that {files['metadata']} is the metadata of the same vertical{core}{window}."
        )

    def _clean(self, rows: pl.DataFrame, items: pl.DataFrame, counts: Counter[str]) -> pl.DataFrame:
        """Sorts a range of users and drops unusable and repeated interactions."""
        titled = items.filter("titled")["item_id"].implode()
        rows = _drop(rows, ~pl.col("item_id").is_in(items["item_id"].implode()), "item_without_metadata", counts)
        rows = sort_interactions(_drop(rows, ~pl.col("item_id").is_in(titled), "item_without_title", counts))
        rows = _drop(rows, ~pl.struct(INTERACTIONS.names()).is_first_distinct(), "repeated", counts)
        if self.collapse_copies:
            review = pl.struct("user_id", pl.col("timestamp") // DAY, "rating", "review_title", "review_text")
            said = pl.any_horizontal(pl.col("review_title", "review_text").is_not_null())
            dated = pl.col("timestamp").is_not_null()
            rows = _drop(rows, said & dated & ~review.is_first_distinct(), "copied_review", counts)
        return rows

    def _latest(self, rows: pl.DataFrame, counts: Counter[str]) -> pl.DataFrame:
        """Keeps the latest `max_history` interactions per user, and counts missing values."""
        newer = pl.int_range(pl.len(), dtype=pl.Int64).reverse().over("user_id")
        rows = _drop(rows, newer >= self.max_history, f"before_the_latest_{self.max_history}", counts)
        ends = rows.group_by("user_id").agg(
            tie=pl.col("timestamp").tail(2).n_unique() < pl.col("timestamp").tail(2).len()
        )
        counts.update(
            {
                "users.kept": len(ends),
                "users.last_purchase_ties": int(ends["tie"].sum()),
                "interactions.without_text": rows["review_text"].null_count(),
                "interactions.without_time": rows["timestamp"].null_count(),
                "interactions.without_rating": rows["rating"].null_count(),
                "interactions.with_bad_time": int(rows["bad_time"].sum()),
                "interactions.rating_of_zero": int(rows["rating_of_zero"].sum()),
                **times_in_units("interactions", rows["time_unit"]),
            }
        )
        return rows.select(INTERACTIONS.names())


def _drop(rows: pl.DataFrame, bad: pl.Expr, reason: str, counts: Counter[str]) -> pl.DataFrame:
    kept = rows.filter(~bad)
    counts[f"interactions.dropped.{reason}"] += len(rows) - len(kept)
    return kept


def _write_items(ranges: IdRanges, kept: set[str], folder: Path, counts: Counter[str]) -> None:
    """Writes and counts the items that are left, one range at a time."""
    wanted = pl.Series(sorted(kept), dtype=pl.String).implode()
    with ParquetParts(folder / "items.parquet") as table:
        for rows in ranges:
            items = one_row_each(rows.filter(pl.col("item_id").is_in(wanted)))
            counts["items.without_price"] += items["price"].null_count()
            for name in items.columns[len(ITEMS) :]:
                counts[f"items.{name}"] += int(items[name].sum())
            table.add(items.select(ITEMS.names()))
    counts["items.kept"] = table.rows
