"""Stage `encode`, CF part: the vectors of all items, fitted on training users only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from regen.config.objects import plain
from regen.config.schema import Split
from regen.data.prepare import item_rows, load_tables
from regen.data.splits import fitted_interactions
from regen.data.tables import Tables
from regen.embeddings.cf import CFModel, normalized_factors
from regen.embeddings.fusion import CFVectors
from regen.storage import identity
from regen.storage.artefacts import Artefact, build


def cf_interactions(tables: Tables, split: Split) -> pl.DataFrame:
    """The interactions that CF may see: those of `fitted_interactions` without a narrative about them.

    So the factor of a training user's final item was not fitted on that purchase, as for a test user. For `xrec` this
    removes the pairs with an explanation from the graph.

    Returns:
        Columns `user_id`, `item` (row in `items`), `rating`; a user's rows in their order of time.
    """
    narrated = tables.narratives.filter(pl.col("item_id").is_not_null()).select("user_id", "item_id").unique()
    return (
        tables.interactions.with_columns(item_rows(tables).alias("item"))
        .filter(fitted_interactions(tables, split))
        .join(narrated, on=["user_id", "item_id"], how="anti", maintain_order="left")
        .select("user_id", "item", "rating")
    )


@dataclass(frozen=True)
class CFPart:
    """Item factors of a CF model, fitted on training users only; a `Part`.

    Attributes:
        model: The CF model.
        config: Config of the model, which identifies the artefact.
        alpha: What the highest rating adds to a confidence.
        split: Selects the training users.
    """

    model: CFModel
    config: Mapping[str, Any]
    alpha: float
    split: Split

    def request(self, prepared: str) -> identity.Request:
        return identity.cf(prepared, self.config, identity.split(plain(self.split)))

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        def make(folder: Path) -> dict[str, int]:
            tables = load_tables(prepared.path, texts=False)
            interactions = cf_interactions(tables, self.split)
            vectors = normalized_factors(self.model, interactions, alpha=self.alpha, items=len(tables.items))
            np.save(folder / "vectors.npy", vectors)
            return {
                "users": interactions["user_id"].n_unique(),
                "items": len(vectors),
                "items_without_factors": int((~vectors.any(axis=1)).sum()),
                "interactions": len(interactions),
            }

        return build(**self.request(prepared.fingerprint), root=root, make=make, force=force)

    def load(self, made: Artefact, tables: Tables) -> CFVectors:
        return load_cf(made, tables)


def load_cf(artefact: Artefact, tables: Tables) -> CFVectors:
    """Memory-mapped CF vectors."""
    return CFVectors(np.load(artefact.path / "vectors.npy", mmap_mode="r"), item_rows(tables).to_numpy())
