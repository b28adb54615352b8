"""Stage `encode`, its CF half: the vectors of all items, from training users alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from regen.data.prepare import item_rows, load_tables
from regen.data.splits import split_of
from regen.data.tables import Tables
from regen.embeddings.cf import ItemFactorizer, confidence_matrix, item_vectors
from regen.embeddings.fusion import CFVectors
from regen.storage import identity
from regen.storage.artefacts import Artefact, build


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
        tables = load_tables(prepared.path, texts=False)
        interactions = cf_interactions(tables, split)
        confidence = confidence_matrix(interactions, alpha=alpha, items=len(tables.items))
        vectors = item_vectors(model, confidence)
        if bad := int((~np.isfinite(vectors)).any(axis=1).sum()):
            raise ValueError(
                f"cf={config['name']}: the vectors of {bad} of {len(vectors):,} items are not finite. Change cf.model: "
                "more regularization, or a lower learning rate where it has one."
            )
        np.save(folder / "vectors.npy", vectors)
        return {
            "users": confidence.shape[0],
            "items": len(vectors),
            "items_without_factors": int((~vectors.any(axis=1)).sum()),
            "interactions": len(interactions),
        }

    return build(**identity.cf(prepared.fingerprint, config, vars(split)), root=root, make=make, force=force)


def load_cf(artefact: Artefact, tables: Tables) -> CFVectors:
    """Memory-mapped CF vectors."""
    return CFVectors(np.load(artefact.path / "vectors.npy", mmap_mode="r"), item_rows(tables).to_numpy())
