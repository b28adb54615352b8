"""Reads Amazon's review and metadata files as cleaned rows of our tables, and counts what is dropped."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from regen.data.amazon_layouts import Layout, schema
from regen.data.cleaning import clean_text, clean_titles, join_categories, parse_prices, unreadable
from regen.data.id_ranges import IdRanges
from regen.data.json_lines import JsonLines
from regen.data.rating_lines import RatingLines, is_csv
from regen.data.tables import INTERACTIONS, ITEMS
from regen.data.times import TimeWindow, read_times


def read_reviews(path: Path, layout: Layout, window: TimeWindow, counts: Counter[str]) -> Iterator[pl.DataFrame]:
    """Yields cleaned interactions in chunks, and counts dropped rows.

    Yields:
        The columns of interactions, and `bad_time`, `time_unit` and `rating_of_zero`.
    """
    fields = schema(layout.reviews)
    lines = RatingLines(path, fields) if is_csv(path) else JsonLines(path, fields)
    reasons = ["no_user_id", "no_item_id", *(["outside_the_time_window"] if window else [])]
    counts.update({f"interactions.dropped.{reason}": 0 for reason in reasons})
    for chunk in lines.chunks():
        rows = chunk.rename(dict(layout.reviews)).select(INTERACTIONS.names())
        seconds, bad, units = read_times(rows["timestamp"])
        rows = rows.with_columns(
            pl.col("user_id", "item_id").str.strip_chars(),
            timestamp=seconds,
            bad_time=bad,
            time_unit=units,
            rating_of_zero=(pl.col("rating") == 0).fill_null(False),
            rating=pl.when(pl.col("rating").is_between(1, 5)).then("rating"),
            review_title=clean_text(rows["review_title"]),
            review_text=clean_text(rows["review_text"]),
        )
        kept = {f"no_{name}": (pl.col(name) != "").fill_null(False) for name in ("user_id", "item_id")}
        if window:
            kept["outside_the_time_window"] = window.holds("timestamp")
        for reason, good in kept.items():
            before = len(rows)
            rows = rows.filter(good)
            counts[f"interactions.dropped.{reason}"] += before - len(rows)
        if not rows.is_empty():
            yield rows
    counts["interactions.read"] = lines.lines
    counts["interactions.dropped.malformed_line"] = lines.malformed


def read_items(path: Path, layout: Layout, seen: set[str], ranges: IdRanges, counts: Counter[str]) -> pl.DataFrame:
    """Reads the items that have reviews; their rows wait in `ranges`, where an item may have several.

    The rows have the columns of items, and the boolean columns `with_unreadable_price` and `layout.notes`.

    Returns:
        Columns `item_id` and `titled` (whether any row of the item has a usable title), one row per item.
    """
    lines = JsonLines(path, schema(layout.items))
    wanted = pl.Series(sorted(seen), dtype=pl.String).implode()
    titles = [pl.Schema({"item_id": pl.String(), "titled": pl.Boolean()}).to_frame()]
    for chunk in lines.chunks():
        rows = chunk.rename(dict(layout.items)).with_columns(pl.col("item_id").str.strip_chars())
        rows = layout.fill_gaps(rows.filter(pl.col("item_id").is_in(wanted)))
        price = parse_prices(rows["price"])
        cleaned = rows.select(
            "item_id",
            *layout.notes,
            title=clean_titles(rows["title"]),
            description=clean_text(rows["description"].list.join(" ", ignore_nulls=True)),
            category=join_categories(rows["category"]),
            price=price,
            brand=clean_titles(rows["brand"]),
            with_unreadable_price=unreadable(rows["price"], price),
        )
        ranges.add(cleaned.select(*ITEMS.names(), "with_unreadable_price", *layout.notes))
        titles.append(cleaned.select("item_id", titled=pl.col("title").is_not_null()))
    matched = pl.concat(titles)
    items = matched.group_by("item_id").agg(pl.col("titled").any())
    counts["items.read"] = lines.lines
    counts["items.dropped.malformed_line"] = lines.malformed
    counts["items.dropped.never_reviewed"] = lines.lines - lines.malformed - len(matched)
    counts["items.dropped.repeated_id"] = len(matched) - len(items)
    counts["items.dropped.no_usable_title"] = len(items) - int(items["titled"].sum())
    counts["items.reviewed_without_metadata"] = len(seen) - len(items)
    return items


def one_row_each(items: pl.DataFrame) -> pl.DataFrame:
    """One row per item, sorted by id, with a title if it has any; the choice does not depend on the order of rows."""
    by_content = items.sort(ITEMS.names(), nulls_last=True)
    preferred = by_content.sort("item_id", pl.col("title").is_null(), maintain_order=True)
    return preferred.unique("item_id", keep="first", maintain_order=True)
