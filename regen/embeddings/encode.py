"""Stage `encode`: the CF vectors of all items and the content vectors of all interactions that histories may hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from regen.artefacts import Artefact, build
from regen.data.histories import build_examples
from regen.data.prepare import item_rows, load_tables
from regen.data.splits import split_of
from regen.data.tables import FEATURES, Tables
from regen.embeddings.cf import ItemFactorizer, confidence_matrix, item_vectors
from regen.embeddings.content import embed_texts, interaction_text, item_text, review_text
from regen.embeddings.fusion import CFVectors, ContentVectors

VECTOR_DTYPE = np.float16  # in which content vectors are kept


@dataclass(frozen=True)
class Split:
    """Shares of users; the rest trains.

    Attributes:
        validation: Share of users whose narratives pick the checkpoint.
        test: Share of users whose narratives are scored.
        salt: Enters the hash that assigns a user.
    """

    validation: float
    test: float
    salt: str

    def of(self, user_ids: pl.Series) -> pl.Series:
        """`train`, `validation` or `test` for each user."""
        distinct = user_ids.unique()
        names = split_of(distinct.to_list(), validation=self.validation, test=self.test, salt=self.salt)
        split = pl.DataFrame({"user_id": distinct, "split": list(names)})
        return user_ids.to_frame("user_id").join(split, on="user_id", how="left", maintain_order="left")["split"]


def cf_interactions(tables: Tables, split: Split) -> pl.DataFrame:
    """The interactions CF may see: those of training users, without the ones a narrative speaks of.

    Training users thus meet their own final item as a test user does: its factor was not fitted on this very purchase.
    For `xrec` this takes a pair's own edge out of the graph.

    Returns:
        Columns `user_id`, `item` (row in `items`), `rating`.
    """
    spoken_of = tables.narratives.filter(pl.col("item_id").is_not_null()).select("user_id", "item_id").unique()
    return (
        tables.interactions.with_columns(item_rows(tables).alias("item"), split.of(tables.interactions["user_id"]))
        .filter(pl.col("split") == "train")
        .join(spoken_of, on=["user_id", "item_id"], how="anti")
        .select("user_id", "item", "rating")
    )


def encode_cf(
    model: ItemFactorizer,
    config: Mapping[str, Any],
    *,
    alpha: float,
    prepared: Artefact,
    split: Split,
    root: Path,
    force: bool = False,
) -> Artefact:
    """Builds or reuses the CF vectors of a prepared data set, fitted on training users only."""

    def make(folder: Path) -> dict[str, int]:
        tables = load_tables(prepared.path)
        interactions = cf_interactions(tables, split)
        confidence = confidence_matrix(interactions, alpha=alpha, items=len(tables.items))
        vectors = item_vectors(model, confidence)
        np.save(folder / "vectors.npy", vectors)
        return {
            "users": confidence.shape[0],
            "items": len(vectors),
            "items_without_factors": int((~vectors.any(axis=1)).sum()),
            "interactions": len(interactions),
        }

    recipe = {**config, "split": vars(split)}
    inputs = {"prepared": prepared.fingerprint}
    return build(
        "cf", root=root, config=recipe, inputs=inputs, libraries=("implicit",), version=1, make=make, force=force
    )


def encode_content(
    config: Mapping[str, Any],
    *,
    pretrained: str,
    batch_size: int,
    prepared: Artefact,
    root: Path,
    force: bool = False,
) -> Artefact:
    """Builds or reuses the content vectors of all interactions in histories, and of those whose review may be withheld.

    They do not depend on the features that a cell chooses, so that cells share them.
    """

    def make(folder: Path) -> dict[str, int]:
        tables = load_tables(prepared.path)
        everything = build_examples(
            tables, withhold=dict.fromkeys(FEATURES, True), max_history=len(tables.interactions)
        )
        rows = _distinct([example.rows for example in everything])
        hidden = _distinct([example.rows[example.withheld] for example in everything])
        metadata = item_text(tables.items).gather(item_rows(tables)).to_numpy()
        reviews = review_text(tables.interactions).to_numpy()
        texts = [interaction_text(metadata[row], reviews[row]) for row in rows]
        texts += [metadata[row] for row in hidden]
        distinct, index = np.unique(np.array(texts, dtype=object), return_inverse=True)
        vectors = embed_texts(distinct.tolist(), pretrained=pretrained, batch_size=batch_size, progress=True)
        np.save(folder / "vectors.npy", vectors.astype(VECTOR_DTYPE))
        for name, part, of in (("reviewed", rows, index[: len(rows)]), ("unreviewed", hidden, index[len(rows) :])):
            row_of = np.full(len(tables.interactions), -1, dtype=np.int32)
            row_of[part] = of
            np.save(folder / f"{name}.npy", row_of)
        return {"texts": len(distinct), "interactions": len(rows), "withheld_somewhere": len(hidden)}

    inputs = {"prepared": prepared.fingerprint}
    libraries = ("sentence-transformers", "transformers")
    return build(
        "content", root=root, config=config, inputs=inputs, libraries=libraries, version=1, make=make, force=force
    )


def load_cf(artefact: Artefact, tables: Tables) -> CFVectors:
    """Memory-mapped CF vectors."""
    return CFVectors(np.load(artefact.path / "vectors.npy", mmap_mode="r"), item_rows(tables).to_numpy())


def load_content(artefact: Artefact) -> ContentVectors:
    """Memory-mapped content vectors."""
    vectors, reviewed, unreviewed = (
        np.load(artefact.path / f"{name}.npy", mmap_mode="r") for name in ("vectors", "reviewed", "unreviewed")
    )
    return ContentVectors(vectors, reviewed, unreviewed)


def _distinct(rows: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows]))
