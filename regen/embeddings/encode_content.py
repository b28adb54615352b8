"""Stage `encode`, content part: the vectors of all interactions in histories, one shard of users at a time.

Memory holds the texts and vectors of one shard, and all items.
"""

import functools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.lib.format import write_array_header_1_0

from regen.data.histories import build_examples
from regen.data.history_words import review_text
from regen.data.prepare import item_rows
from regen.data.tables import FEATURES, Tables
from regen.embeddings.content import embed_texts
from regen.embeddings.fusion import ContentVectors, ItemVectors
from regen.embeddings.interaction_texts import interaction_texts, item_parts
from regen.embeddings.vector_store import VECTOR_DTYPE, VectorStore, text_keys
from regen.runtime.shards import INTERACTIONS, Engine
from regen.storage import identity
from regen.storage.artefacts import Artefact, build

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardTexts:
    """The distinct texts of a shard, and the text of each of its interactions.

    Attributes:
        texts: Distinct texts, sorted.
        reviewed: Rows of interactions that occur in a history with their review, and the text of each.
        unreviewed: Rows of interactions that occur in a history without their review, and the text of each.
        counts: Number of reviews in `reviewed`, and how many are truncated to fit into the encoder's window.
    """

    texts: list[str]
    reviewed: tuple[np.ndarray, np.ndarray]
    unreviewed: tuple[np.ndarray, np.ndarray]
    counts: dict[str, int]


@dataclass(frozen=True)
class EncodeShard:
    """Encodes the texts of a shard that the store lacks. The engine may call it on another machine."""

    prepared: Path
    root: Path
    encoder: Mapping[str, Any]
    pretrained: str
    batch_size: int
    force: bool = False

    def __call__(self, rows: tuple[int, int]) -> tuple[int, int]:
        """Takes the first row and the end of the shard; returns the numbers of its texts and of the encoded ones."""
        texts = shard_texts(self.prepared, rows, pretrained=self.pretrained).texts
        embed = partial(embed_texts, pretrained=self.pretrained, batch_size=self.batch_size)
        store = VectorStore(self.root, self.encoder)
        return len(texts), store.add_missing(texts, embed, size=max(1, len(texts)), force=self.force)


@dataclass(frozen=True)
class ContentPart:
    """Sentence embeddings of item texts with reviews; a `Part`.

    The artefact has the vectors of all interactions in histories, and vectors without the review where a feature may
    withhold it. It does not depend on the features of a run, so runs share it.

    Attributes:
        pretrained: As for `embed_texts`.
        batch_size: As for `embed_texts`.
        engine: Encodes the texts in this process or on a cluster.
    """

    pretrained: str
    batch_size: int
    engine: Engine

    def request(self, prepared: str) -> identity.Request:
        return identity.content(prepared, identity.sentence_encoder(self.pretrained))

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        def make(folder: Path) -> dict[str, int]:
            encoder = identity.sentence_encoder(self.pretrained)
            shards = user_shards(prepared.path, self.engine.interactions)
            work = EncodeShard(prepared.path, root, encoder, self.pretrained, self.batch_size, force)
            texts, encoded = map(sum, zip(*self.engine.map(work, shards, name="encode"), strict=True))
            parts = (shard_texts(prepared.path, rows, pretrained=self.pretrained) for rows in shards)
            return {"encoded": encoded, **_assemble(folder, shards, parts, VectorStore(root, encoder), texts)}

        made = build(**self.request(prepared.fingerprint), root=root, make=make, force=force)
        logger.info("content: %s", _coverage(made.manifest["counts"]))
        return made

    def load(self, made: Artefact, tables: Tables) -> ContentVectors:
        return load_content(made)


@dataclass(frozen=True)
class ItemContentPart:
    """Sentence embeddings of item texts without reviews, for `task=recommend` and `encoder=item_text`; a `Part`.

    Attributes:
        pretrained: As for `embed_texts`.
        batch_size: As for `embed_texts`.
        name: Name of the part in the config; it changes nothing.
    """

    pretrained: str
    batch_size: int
    name: str = "content"

    def request(self, prepared: str) -> identity.Request:
        return identity.item_content(prepared, identity.sentence_encoder(self.pretrained))

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        def make(folder: Path) -> dict[str, int]:
            _, parts = _items(prepared.path)
            texts = interaction_texts(parts, [""] * len(parts), pretrained=self.pretrained).texts
            distinct, store = sorted(set(texts)), VectorStore(root, identity.sentence_encoder(self.pretrained))
            embed = partial(embed_texts, pretrained=self.pretrained, batch_size=self.batch_size, progress=True)
            encoded = store.add_missing(distinct, embed, size=INTERACTIONS, force=force)
            np.save(folder / "vectors.npy", store.vectors(text_keys(texts)))
            return {"items": len(texts), "texts": len(distinct), "encoded": encoded}

        return build(**self.request(prepared.fingerprint), root=root, make=make, force=force)

    def load(self, made: Artefact, tables: Tables) -> ItemVectors:
        return ItemVectors(np.load(made.path / "vectors.npy", mmap_mode="r"), item_rows(tables).to_numpy())


def load_content(artefact: Artefact) -> ContentVectors:
    """Memory-mapped content vectors."""
    vectors, reviewed, unreviewed = (
        np.load(artefact.path / f"{name}.npy", mmap_mode="r") for name in ("vectors", "reviewed", "unreviewed")
    )
    return ContentVectors(vectors, reviewed, unreviewed)


def user_shards(prepared: Path, size: int) -> list[tuple[int, int]]:
    """Ranges of at least `size` interactions, except the last one, that do not split a user's history."""
    bounds, last, row = [0], None, 0
    for batch in pq.ParquetFile(prepared / "interactions.parquet").iter_batches(size, columns=["user_id"]):
        users = pl.Series(batch.column(0).cast("large_string"))
        starts = np.flatnonzero((users != users.shift(1, fill_value=last)).fill_null(True).to_numpy()) + row
        if len(late := starts[starts >= bounds[-1] + size]):
            bounds.append(int(late[0]))
        last, row = users[-1], row + len(users)
    return list(zip(bounds, [*bounds[1:], row], strict=True))


def shard_texts(prepared: Path, rows: tuple[int, int], *, pretrained: str) -> ShardTexts:
    """Texts for the sentence encoder of the interactions in a range of rows."""
    start, end = rows
    items, parts = _items(prepared)
    interactions = pl.scan_parquet(prepared / "interactions.parquet", glob=False).slice(start, end - start).collect()
    users = interactions["user_id"]
    narratives = pl.scan_parquet(prepared / "narratives.parquet", glob=False).filter(
        pl.col("user_id").is_between(pl.lit(users[0]), pl.lit(users[-1]))
    )
    tables = Tables(items, interactions, narratives.collect())
    withhold = dict.fromkeys(FEATURES, True)
    everything = build_examples(tables, withhold=withhold, max_history=len(interactions), warn=False)
    shown = _distinct([example.rows for example in everything])
    hidden = _distinct([example.rows[example.withheld] for example in everything])
    item_of, reviews = item_rows(tables), review_text(interactions)
    reviewed = interaction_texts(parts[item_of.gather(shown)], reviews.gather(shown).to_list(), pretrained=pretrained)
    unreviewed = interaction_texts(parts[item_of.gather(hidden)], [""] * len(hidden), pretrained=pretrained)
    before, kept = reviewed.review_characters, reviewed.kept_characters
    texts = [*reviewed.texts, *unreviewed.texts]
    distinct, index = np.unique(np.array(texts, dtype=object), return_inverse=True)
    counts = {
        "interactions": len(shown),
        "withheld_somewhere": len(hidden),
        "reviews": int((before > 0).sum()),
        "reviews_cut": int((kept < before).sum()),
        "review_characters": int(before.sum()),
        "review_characters_kept": int(kept.sum()),
    }
    index_of = (shown + start, index[: len(shown)]), (hidden + start, index[len(shown) :])
    return ShardTexts(distinct.tolist(), *index_of, counts)


def _coverage(counts: Mapping[str, int]) -> str:
    """A sentence about the share of the reviews that the sentence encoder reads."""
    share = counts["review_characters_kept"] / max(1, counts["review_characters"])
    return (
        f"{share:.1%} of the reviews' characters reach the vectors; the encoder's window cuts "
        f"{counts['reviews_cut']:,} of {counts['reviews']:,} reviews"
    )


def _assemble(
    folder: Path, shards: list[tuple[int, int]], parts: Iterable[ShardTexts], store: VectorStore, texts: int
) -> dict[str, int]:
    """Writes the vectors, and the row of each interaction's vector, shard by shard. Rows of one user are adjacent."""
    counts: Counter[str] = Counter()
    written = 0
    rows = shards[-1][1]
    with (
        _growing(folder / "vectors.npy", VECTOR_DTYPE, (texts, store.dim)) as vectors,
        _growing(folder / "reviewed.npy", np.int32, (rows,)) as reviewed,
        _growing(folder / "unreviewed.npy", np.int32, (rows,)) as unreviewed,
    ):
        for (start, end), part in zip(shards, parts, strict=True):
            store.vectors(text_keys(part.texts)).tofile(vectors)
            for file, (interactions, of) in ((reviewed, part.reviewed), (unreviewed, part.unreviewed)):
                row_of = np.full(end - start, -1, dtype=np.int32)
                row_of[interactions - start] = written + of
                row_of.tofile(file)
            written += len(part.texts)
            counts.update(part.counts)
    return {"texts": written, **counts}


@contextmanager
def _growing(path: Path, dtype: type, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Opens an `.npy` file of known shape, to which the rows are appended."""
    with path.open("wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        write_array_header_1_0(file, header)
        yield file


@functools.lru_cache(maxsize=1)
def _items(prepared: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    items = pl.read_parquet(prepared / "items.parquet", glob=False)
    return items, item_parts(items)


def _distinct(rows: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows]))
