"""Stage `encode`, its CF half: the vectors of all items, from training users alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from regen.config.objects import plain
from regen.config.schema import Split
from regen.data.prepare import item_rows, load_tables
from regen.data.splits import fitted_interactions
from regen.data.tables import Tables
from regen.embeddings.cf import ItemFactorizer, confidence_matrix, item_vectors
from regen.embeddings.fusion import CFVectors
from regen.storage import identity
from regen.storage.artefacts import Artefact, build


def cf_interactions(tables: Tables, split: Split) -> pl.DataFrame:
    """The interactions CF may see (see `fitted_interactions`), without the ones a narrative speaks of.

    Training users thus meet their own final item as a test user does: its factor was not fitted on this very purchase.
    For `xrec` this takes a pair's own edge out of the graph.

    Returns:
        Columns `user_id`, `item` (row in `items`), `rating`.
    """
    spoken_of = tables.narratives.filter(pl.col("item_id").is_not_null()).select("user_id", "item_id").unique()
    return (
        tables.interactions.with_columns(item_rows(tables).alias("item"))
        .filter(fitted_interactions(tables, split))
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

    return build(
        **identity.cf(prepared.fingerprint, config, identity.split(plain(split))), root=root, make=make, force=force
    )


def load_cf(artefact: Artefact, tables: Tables) -> CFVectors:
    """Memory-mapped CF vectors."""
    return CFVectors(np.load(artefact.path / "vectors.npy", mmap_mode="r"), item_rows(tables).to_numpy())
