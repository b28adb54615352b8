"""Reads Amazon's review and metadata files as cleaned rows of our tables, and counts what is dropped."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from regen.data.amazon_layouts import Layout, schema
from regen.data.cleaning import clean_text, clean_titles, join_categories, parse_prices, unreadable
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


def read_items(path: Path, layout: Layout, seen: set[str], counts: Counter[str]) -> pl.DataFrame:
    """Reads the items that have reviews, one row per item, including items without a usable title.

    Returns:
        The columns of items, and the boolean columns `with_unreadable_price` and `layout.notes`.
    """
    lines = JsonLines(path, schema(layout.items))
    wanted = pl.Series(sorted(seen), dtype=pl.String).implode()
    notes = ("with_unreadable_price", *layout.notes)
    chunks, matched = [pl.Schema({**ITEMS, **dict.fromkeys(notes, pl.Boolean())}).to_frame()], 0
    for chunk in lines.chunks():
        rows = chunk.rename(dict(layout.items)).with_columns(pl.col("item_id").str.strip_chars())
        rows = layout.fill_gaps(rows.filter(pl.col("item_id").is_in(wanted)))
        matched += len(rows)
        price = parse_prices(rows["price"])
        chunks.append(
            rows.select(
                "item_id",
                *layout.notes,
                title=clean_titles(rows["title"]),
                description=clean_text(rows["description"].list.join(" ", ignore_nulls=True)),
                category=join_categories(rows["category"]),
                price=price,
                brand=clean_titles(rows["brand"]),
                with_unreadable_price=unreadable(rows["price"], price),
            ).select(chunks[0].columns)
        )
    found = pl.concat(chunks).sort(ITEMS.names(), nulls_last=True)
    # Of repeated rows, prefer one with a title. The choice depends on the content, not on the order in the file.
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
