"""Stage `release`: exports a data set with a data card, to load with `datasets.load_dataset(folder, "narratives")`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from datasets import Dataset, Features, List, Value, disable_progress_bars

from regen.data.prepare import load_tables
from regen.data.splits import NAMES
from regen.data.tables import INTERACTIONS, ITEMS, DataError, Tables, with_columns_of
from regen.narratives.critiques import WRITTEN_CRITIQUES
from regen.narratives.narrators import NARRATED
from regen.narratives.rate import RATINGS
from regen.narratives.rater_checks import CONTROLS
from regen.narratives.release_card import release_card
from regen.storage.artefacts import Artefact, appearing_whole, open_artefact

_PURCHASE: tuple[str, ...] = ("item_id", "timestamp", "title", "description", "category", "brand", "price", "rating")
_PURCHASE += ("review_title", "review_text")
_TYPES: dict[Any, str] = {pl.String(): "string", pl.Int64(): "int64", pl.Int8(): "int8", pl.Float64(): "float64"}


def _typed(name: str, schema: pl.Schema) -> Any:
    """The `datasets` type of a column."""
    dtype = schema[name]
    return List(Value(_TYPES[dtype.inner])) if isinstance(dtype, pl.List) else Value(_TYPES[dtype])


FEATURES: dict[str, Features] = {
    "histories": Features(
        {
            "user_id": Value("string"),
            "purchases": List({name: _typed(name, pl.Schema({**ITEMS, **INTERACTIONS})) for name in _PURCHASE}),
        }
    ),
    "narratives": Features({name: _typed(name, NARRATED) for name in NARRATED}),
    "critiques": Features({name: _typed(name, WRITTEN_CRITIQUES) for name in WRITTEN_CRITIQUES}),
    "ratings": Features({name: _typed(name, RATINGS) for name in RATINGS}),
}
"""The configurations of a release and the types of their columns."""


def release(
    data: Artefact,
    *,
    source: str,
    vertical: str,
    split_of: Mapping[str, str],
    folder: Path,
    licence: str,
    ratings: Path | None = None,
    force: bool = False,
) -> Path:
    """Writes the data set and its card.

    Args:
        data: Prepared or narrated data.
        source: Name of the source in the config.
        vertical: Name of the vertical in the config.
        split_of: `train`, `validation` or `test` of each user.
        folder: Where to write. Must not exist unless `force`.
        licence: Licence identifier for the card.
        ratings: Artefact folder of stage `rate` for the same data.
        force: Replace the folder.

    Raises:
        DataError: If there are no narratives, the folder exists, or the ratings are of other data.
    """
    tables = load_tables(data.path)
    if tables.narratives.is_empty():
        raise DataError(
            f"{data.path} has no narratives to release. Choose what writes them: narrator=template or openai."
        )
    if folder.exists() and not force:
        raise DataError(f"{folder} exists. Set folder to another one, or force=true to replace it.")
    if folder.exists() and (strange := {path.name for path in folder.iterdir()} - {"README.md", *FEATURES}):
        raise DataError(f"{folder} holds {min(strange)}, so it is not a release; force=true replaces releases only.")
    users = tables.narratives.select("user_id").unique()
    frames = {"histories": _histories(tables, users), "narratives": with_columns_of(NARRATED, tables.narratives)}
    if tables.critiques is not None and tables.critiques.height:
        critiques = with_columns_of(WRITTEN_CRITIQUES, tables.critiques)
        frames["critiques"] = critiques.join(users, on="user_id", how="semi", maintain_order="left")
    controls = pl.DataFrame(schema=CONTROLS)
    if ratings is not None:
        frames["ratings"] = _ratings(ratings, data)
        controls = pl.read_parquet(ratings / "controls.parquet", glob=False)
    splits = pl.DataFrame({"user_id": list(split_of), "split": list(split_of.values())})
    disable_progress_bars()
    with appearing_whole(folder) as partial:
        for name, frame in frames.items():
            for split in NAMES:
                part = frame.join(
                    splits.filter(pl.col("split") == split), on="user_id", how="semi", maintain_order="left"
                )
                if part.is_empty():  # `load_dataset` fails on a split without rows
                    continue
                path = partial / name / f"{split}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                Dataset.from_polars(part.select(FEATURES[name].keys()), features=FEATURES[name]).to_parquet(path)
        card = release_card(frames, controls, tables, splits, data, source=source, vertical=vertical, licence=licence)
        card.save(partial / "README.md")
    return folder


def _histories(tables: Tables, users: pl.DataFrame) -> pl.DataFrame:
    """One row per user, with purchases oldest first."""
    rows = tables.interactions.join(users, on="user_id", how="semi", maintain_order="left").join(
        tables.items, on="item_id", how="left", maintain_order="left"
    )
    return rows.group_by("user_id", maintain_order=True).agg(pl.struct(list(_PURCHASE)).alias("purchases"))


def _ratings(folder: Path, data: Artefact) -> pl.DataFrame:
    try:
        rated = open_artefact(folder)
    except FileNotFoundError as error:
        raise DataError(f"ratings={folder}: no such artefact folder. Give the one that regen rate prints.") from error
    of = rated.manifest["inputs"].get("data")
    if of != data.fingerprint:
        raise DataError(f"ratings={folder}: these rate the data {of}, not {data.fingerprint} ({data.path}).")
    if "written" in rated.manifest["inputs"]:
        raise DataError(f"ratings={folder}: these rate what a model wrote, not the narratives of {data.path}.")
    if "controls.parquet" not in rated.manifest["files"]:
        raise DataError(
            f"ratings={folder}: written before raters were checked. Run regen rate again; answers are kept."
        )
    for name, table in (("references", "narratives"), ("critiques", "critiques")):
        now = data.manifest["files"].get(f"{table}.parquet", {}).get("sha256")
        if rated.manifest["inputs"].get(name) != now:
            raise DataError(f"ratings={folder}: the {table} were written again since. Run regen rate again.")
    return pl.read_parquet(folder / "ratings.parquet", glob=False)
