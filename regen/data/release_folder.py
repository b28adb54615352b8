"""A folder of `regen release`: Parquet files by table and split, as source `regen_release` reads them back."""

from pathlib import Path

import polars as pl

from regen.data.splits import NAMES
from regen.data.tables import (
    CRITIQUES,
    INTERACTIONS,
    ITEMS,
    NARRATIVES,
    POSITION,
    DataError,
    OnBadRow,
    Tables,
    with_columns_of,
)
from regen.data.validation import validate

TABLES = ("histories", "narratives", "critiques")  # ratings are not read back


def release_files(folder: Path) -> dict[str, Path]:
    """The files of a release by table and split.

    Raises:
        DataError: If there are no histories or no narratives.
    """
    names = [f"{table}/{split}" for table in TABLES for split in NAMES]
    found = {name: path for name in names if (path := folder / f"{name}.parquet").is_file()}
    for table in ("histories", "narratives"):
        if not any(name.startswith(table) for name in found):
            raise DataError(
                f"{folder}: no {table}/train.parquet, validation.parquet or test.parquet, so this is not a release. "
                "Set source.path to the folder that regen release prints, or to a file with one user per line."
            )
    return found


def read_release(folder: Path, *, on_bad_row: OnBadRow) -> tuple[Tables, dict[str, int]]:
    """Validated tables of a release, and the counts of `validate`.

    The items are those that somebody in the release bought. All splits are read together, because `split` decides
    again; the same settings give the same split.

    Raises:
        DataError: If a file is not of a release, or a row is unusable.
    """
    files = release_files(folder)
    histories = _read(files, "histories", {"user_id", "purchases"})
    try:
        bought = histories.explode("purchases", empty_as_null=False).unnest("purchases")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{folder}/histories: 'purchases' is no list of purchases ({error}).") from error
    items = with_columns_of(ITEMS, bought).select(ITEMS.names()).unique()
    interactions = with_columns_of(INTERACTIONS, bought).select(INTERACTIONS.names())
    has_critiques = any(name.startswith("critiques") for name in files)
    tables = Tables(
        items=items.sort(ITEMS.names(), nulls_last=True).unique("item_id", keep="first", maintain_order=True),
        interactions=interactions.with_columns(pl.int_range(pl.len()).alias(POSITION)),
        narratives=_read(files, "narratives", set(NARRATIVES)).drop_nulls("text"),  # no reason was seen
        critiques=_read(files, "critiques", set(CRITIQUES)) if has_critiques else None,
    )
    return validate(tables, on_bad_row=on_bad_row, origin={name: f"{folder}/{name}" for name in ("items", *TABLES)})


def _read(files: dict[str, Path], table: str, columns: set[str]) -> pl.DataFrame:
    """All splits of a table."""
    parts = []
    for name, path in files.items():
        if name.startswith(table):
            try:
                parts.append(pl.read_parquet(path, glob=False))
            except pl.exceptions.PolarsError as error:
                raise DataError(f"{path}: not a Parquet file ({error}).") from error
            if missing := columns - set(parts[-1].columns):
                raise DataError(f"{path}: has no column {min(missing)!r}, so it is not of a release.")
    return pl.concat(parts)
