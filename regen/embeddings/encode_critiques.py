"""Stage `encode`, critiques: the critique between each two adjacent purchases, and its sentence embedding."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from regen.data.critiques import VERSION, Critiques, critiques_of
from regen.data.prepare import load_tables
from regen.data.tables import DataError
from regen.embeddings.content import embed_texts
from regen.embeddings.vector_store import VectorStore, text_keys
from regen.runtime.shards import INTERACTIONS
from regen.storage import identity
from regen.storage.artefacts import Artefact, build

FILE = "critiques.parquet"
CRITIQUES = "critiques"  # name of the artefact in records


@dataclass(frozen=True)
class CritiquePart:
    """Builds the artefact of the critiques and their vectors.

    Attributes:
        pretrained: As for `embed_texts`.
        batch_size: As for `embed_texts`.
        shared: As for `regen.data.critiques.critiques_of`.
    """

    pretrained: str
    batch_size: int
    shared: float

    def request(self, prepared: str) -> identity.Request:
        """Identity of the artefact, from the fingerprint of the prepared data."""
        recipe = {"version": VERSION, "shared": self.shared, "encoder": identity.sentence_encoder(self.pretrained)}
        return identity.critiques(prepared, recipe)

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        """Builds or reuses `critiques.parquet` and the vectors; arguments as for `Part.encode`."""

        def make(folder: Path) -> dict[str, int]:
            critiques = critiques_of(load_tables(prepared.path), shared=self.shared)
            if critiques.is_empty():
                raise DataError("data.critiques=true: no two adjacent purchases have a critique.")
            texts = critiques["text"].unique().sort().to_list()
            store = VectorStore(root, identity.sentence_encoder(self.pretrained))
            embed = partial(embed_texts, pretrained=self.pretrained, batch_size=self.batch_size, progress=True)
            encoded = store.add_missing(texts, embed, size=INTERACTIONS, force=force)
            critiques.write_parquet(folder / FILE)
            np.save(folder / "vectors.npy", store.vectors(text_keys(texts)))
            return {"critiques": len(critiques), "texts": len(texts), "encoded": encoded}

        return build(**self.request(prepared.fingerprint), root=root, make=make, force=force)


def load_critiques(artefact: Artefact) -> Critiques:
    """Loads the critiques of an artefact."""
    rows = pl.read_parquet(artefact.path / FILE, columns=["user_id", "to_item_id", "text"], glob=False)
    texts = rows["text"].unique().sort().to_list()
    number = {text: row for row, text in enumerate(texts)}
    vectors = np.load(artefact.path / "vectors.npy").astype(np.float32)
    none = np.zeros((1, vectors.shape[1]), dtype=np.float32)
    row_of = {(user, item): number[text] for user, item, text in rows.iter_rows()}
    return Critiques(texts, np.concatenate([vectors, none]), row_of)
