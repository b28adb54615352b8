"""Source `xrec`: the books of HKUDS/XRec, with narratives written by an LLM.

User summaries become `brief_user_summary` and explanations become `purchase_reason_explanation`. The user-item graph
gives the interactions, without times, ratings or reviews. Some items are only in the graph and have no text. Each pair
with an explanation is an interaction, also if the graph lacks it. CF never sees these pairs
(`regen.embeddings.encode.cf_interactions`).
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from regen.data.cleaning import unescape
from regen.data.files import find_file, read_csv, read_jsonl
from regen.data.source import TablesSource
from regen.data.tables import INTERACTIONS, ITEMS, LINE, NARRATIVES, OnBadRow, Tables, with_columns_of
from regen.data.validation import validate

FILES = ("users.jsonl", "items.jsonl", "explanations.jsonl", "interactions.csv")
_USERS = pl.Schema({"uid": pl.String(), "user_summary": pl.String()})
_BOOKS = pl.Schema({"iid": pl.String(), "title": pl.String(), "item_summary": pl.String()})
_PAIRS = pl.Schema({"uid": pl.String(), "iid": pl.String(), "explanation": pl.String()})


@dataclass(kw_only=True)
class XRecSource(TablesSource):
    """Reads the layout of `xrec_amazon`.

    Args:
        folder: Folder with users, items, explanations (`.jsonl`) and interactions (`.csv`), plain or gzipped.
        on_bad_row: `error` stops at an unusable row, `skip` drops and counts it.
    """

    folder: str
    on_bad_row: OnBadRow = "error"

    def files(self) -> dict[str, Path]:
        """The four input files."""
        return {name: find_file(self.folder, name, setting="source.folder") for name in FILES}

    def read(self) -> tuple[Tables, dict[str, int]]:
        """Validated tables, and the counts of `validate`, `pairs_that_are_edges` and `pairs_added`."""
        users, books, pairs, graph = self.files().values()
        explained = read_jsonl(pairs, required=_PAIRS.names(), schema=_PAIRS)
        edges = read_csv(graph, required=["user", "item"]).select(
            user_id=pl.col("user"), item_id=pl.col("item"), line=pl.col(LINE)
        )
        spoken_of = explained.select(user_id="uid", item_id="iid")
        no_edges = spoken_of.join(edges, on=["user_id", "item_id"], how="anti")
        new = no_edges.unique()
        tables = Tables(
            items=_items(read_jsonl(books, required=_BOOKS.names(), schema=_BOOKS)),
            interactions=with_columns_of(INTERACTIONS, pl.concat([edges, new], how="diagonal")),
            narratives=_narratives(read_jsonl(users, required=_USERS.names(), schema=_USERS), explained),
        )
        origin = {"items": str(books), "interactions": str(graph), "narratives": f"{users} and {pairs}"}
        checked, counts = validate(tables, on_bad_row=self.on_bad_row, origin=origin, add_missing_items=True)
        return checked, counts | {"pairs_that_are_edges": len(explained) - len(no_edges), "pairs_added": len(new)}


def _items(books: pl.DataFrame) -> pl.DataFrame:
    text = pl.col("title", "item_summary").map_elements(unescape, return_dtype=pl.String)
    items = books.with_columns(text).select(
        item_id="iid", title="title", description="item_summary", category=pl.lit("Books"), line=pl.col(LINE)
    )
    return with_columns_of(ITEMS, items)


def _narratives(users: pl.DataFrame, explained: pl.DataFrame) -> pl.DataFrame:
    summaries = users.select(
        user_id="uid", feature=pl.lit("brief_user_summary"), text="user_summary", line=pl.col(LINE)
    )
    reasons = explained.select(
        user_id="uid",
        feature=pl.lit("purchase_reason_explanation"),
        item_id="iid",
        text="explanation",
        line=pl.col(LINE),
    )
    return with_columns_of(NARRATIVES, pl.concat([summaries, reasons], how="diagonal"))
