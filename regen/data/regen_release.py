"""Source `regen_release`: the published REGEN data set, one user with history and narratives per line (paper 3).

A folder that `regen release` wrote is read as well, see `release_folder`; it needs no mapping. The field names of the
published release are not documented, so `conf/source/regen_release.yaml` maps them. A mapped name that
does not occur is an error that lists the names in the file.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from regen.data.cleaning import parse_prices, unreadable
from regen.data.json_lines import JsonLines, whole_lines
from regen.data.release_folder import read_release, release_files
from regen.data.source import TablesSource
from regen.data.tables import (
    FEATURES,
    INTERACTIONS,
    ITEM_FEATURES,
    ITEMS,
    LINE,
    MAX_RATING,
    NARRATIVES,
    POSITION,
    DataError,
    OnBadRow,
    Tables,
    nearest,
    with_columns_of,
)
from regen.data.validation import validate

SAMPLE = 1_000  # a mapped name has to occur in the first lines
_ELEMENT: tuple[str, ...] = ("item_id", "title", "description", "category", "price", "brand")
_ELEMENT += ("timestamp", "rating", "review_title", "review_text")


class ReleaseSource(TablesSource):
    """Reads one vertical of the release.

    Args:
        path: The file, plain or gzipped; or a folder of `regen release`, for which `fields` and `max_rating` do not
            matter.
        fields: Dotted names in the file, null for a value that the file does not have. `user_id`, `history` and
            `narratives` are names in the line, the others are names in an element of the history.
        on_bad_row: `error` stops at an unusable row, `skip` drops and counts it.
        max_rating: Highest rating of the scale.
    """

    def __init__(
        self,
        *,
        path: str,
        fields: Mapping[str, Any],
        on_bad_row: OnBadRow = "error",
        max_rating: float = MAX_RATING,
    ) -> None:
        self.path = Path(path)
        self.max_rating = max_rating
        self.on_bad_row = on_bad_row
        self.narratives = {name: str(at) for name, at in fields["narratives"].items() if at is not None}
        self.fields = {name: str(at) for name, at in fields.items() if name != "narratives" and at is not None}
        self.purchase_fields = {name: self.fields[name] for name in _ELEMENT if name in self.fields}
        for name in self.narratives:
            if name not in FEATURES:
                raise ValueError(f"source.fields.narratives.{name}: no such feature. {nearest(name, FEATURES)}")
        for name in ("user_id", "history", "item_id", "title"):
            if name not in self.fields:
                raise ValueError(f"source.fields.{name} cannot be null.")

    def files(self) -> dict[str, Path]:
        """The file of the vertical, or the files of the folder."""
        if self.path.is_dir():
            return release_files(self.path)
        if not self.path.is_file():
            raise DataError(
                f"{self.path}: no such file. Download the release from Kaggle (googleai/"
                "regen-reviews-enhanced-with-generative-narratives) and set source.path to the file of the vertical, "
                "or to a folder of regen release."
            )
        return {"release": self.path}

    def read(self) -> tuple[Tables, dict[str, int]]:
        """Validated tables, and the counts of `validate`, `users.read` and `users.dropped.malformed_line`.

        Raises:
            DataError: If a mapped name does not occur, or a row is unusable.
        """
        if self.path.is_dir():
            return read_release(self.path, on_bad_row=self.on_bad_row)
        self._check_names()
        lines = JsonLines(self.path, _schema(self._paths()))
        users = pl.concat([pl.DataFrame(schema=lines.schema), *lines.chunks()])
        if lines.malformed and self.on_bad_row == "error":
            raise DataError(
                f"{self.path}: {lines.malformed:,} of {lines.lines:,} lines are not JSON objects. "
                "Set source.on_bad_row=skip to drop them."
            )
        users = users.with_row_index(LINE, offset=1).cast({LINE: pl.Int64})
        bought = (
            users.select(LINE, user_id=_value(self.fields["user_id"]), history=_value(self.fields["history"]))
            .explode("history", empty_as_null=False)
            .select(
                LINE, "user_id", *(_value(f"history.{at}").alias(name) for name, at in self.purchase_fields.items())
            )
        )
        bought = with_columns_of(pl.Schema(dict.fromkeys(_ELEMENT, pl.String())), bought)
        price = parse_prices(bought["price"])
        unread = bought.filter(unreadable(bought["price"], price))["item_id"]
        bought = bought.with_columns(price.alias("price"), pl.int_range(pl.len()).alias(POSITION))
        items = bought.filter(pl.col("item_id").is_not_null()).select(ITEMS.names()).unique()
        distinct = items.sort(ITEMS.names(), nulls_last=True).unique("item_id", keep="first", maintain_order=True)
        interactions = bought.select(LINE, POSITION, *INTERACTIONS.names())
        once = interactions.unique(
            [LINE, *INTERACTIONS.names()], keep="first", maintain_order=True
        )  # some are repeated
        tables = Tables(items=distinct, interactions=once, narratives=self._narratives(users, bought))
        checked, counts = validate(
            tables, on_bad_row=self.on_bad_row, origin=str(self.path), max_rating=self.max_rating
        )
        counts["interactions.read"] = len(interactions)
        counts["interactions.dropped.repeated"] = (
            counts.get("interactions.dropped.repeated", 0) + len(interactions) - len(once)
        )
        noted = {
            "items.with_several_descriptions": len(items) - len(distinct),
            "items.with_unreadable_price": int(checked.items["item_id"].is_in(unread.implode()).sum()),
            "users.read": lines.lines,
        }
        return checked, counts | noted | {"users.dropped.malformed_line": lines.malformed}

    def _narratives(self, users: pl.DataFrame, bought: pl.DataFrame) -> pl.DataFrame:
        """One row per text. Texts about one item are about the last element of the history."""
        last = bought.group_by(LINE, maintain_order=True).agg(pl.col("item_id", "timestamp").last())
        rows = [pl.DataFrame(schema={LINE: pl.Int64(), **NARRATIVES, "timestamp": pl.String()})]
        for feature, at in self.narratives.items():
            texts = users.select(LINE, user_id=_value(self.fields["user_id"]), text=_value(at)).drop_nulls("text")
            if feature in ITEM_FEATURES:
                texts = texts.join(last, on=LINE, how="left")
            rows.append(texts.with_columns(feature=pl.lit(feature)))
        return pl.concat(rows, how="diagonal")

    def _paths(self) -> dict[str, pl.DataType]:
        """Full dotted name and type of every mapped value, with `[]` after the list of purchases."""
        history = self.fields["history"]
        paths: dict[str, pl.DataType] = {self.fields["user_id"]: pl.String()}
        for at in self.purchase_fields.values():
            paths[f"{history}[].{at}"] = pl.String()  # also for numbers
        return paths | {at: pl.String() for at in self.narratives.values()}

    def _check_names(self) -> None:
        found: dict[str, None] = {}
        begin = next(whole_lines(self.path), b"")
        for line in begin.split(b"\n", SAMPLE)[:SAMPLE]:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found.update(dict.fromkeys(_leaves(record)))
        keys = {at: f"source.fields.{name}" for name, at in self.fields.items()}
        keys |= {f"{self.fields['history']}[].{at}": keys[at] for at in self.purchase_fields.values()}
        keys |= {at: f"source.fields.narratives.{name}" for name, at in self.narratives.items()}
        for at in self._paths():
            if at not in found:
                above, mark, below = at.rpartition("[].")
                names = [name.removeprefix(above + mark) for name in found if name.startswith(above + mark)]
                raise DataError(
                    f"{keys[at]}={below}: the first {SAMPLE:,} lines of {self.path} have no such name"
                    f"{f' below {above}' if mark and names else ''}. {nearest(below, names or list(found))} "
                    "Set it to one of them, or to null if the file has no such value."
                )


def _value(path: str) -> pl.Expr:
    """The value at a dotted name: a column, then fields of its structs."""
    first, *rest = path.split(".")
    value = pl.col(first)
    for name in rest:
        value = value.struct.field(name)
    return value


def _schema(paths: Mapping[str, pl.DataType]) -> pl.Schema:
    """Nested Polars types of dotted names."""
    tree: dict[str, Any] = {}
    for path, dtype in paths.items():
        *above, leaf = path.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[leaf] = dtype
    return pl.Schema(_types(tree))


def _types(tree: Mapping[str, Any]) -> dict[str, Any]:
    types: dict[str, Any] = {}
    for name, below in tree.items():
        dtype = pl.Struct(_types(below)) if isinstance(below, dict) else below
        types[name.removesuffix("[]")] = pl.List(dtype) if name.endswith("[]") else dtype
    return types


def _leaves(value: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted names of all values that are not an object or a list, with `[]` after a list."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for below in value:
            yield from _leaves(below, f"{path}[]")
    elif path:
        yield path
