"""Stage `encode`, its content half: vectors of all interactions that histories may hold, shard by shard of users.

At no time are more texts or vectors in memory than those of one shard; items are, because every shard may need any.
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
from regen.data.prepare import item_rows
from regen.data.tables import FEATURES, Tables
from regen.embeddings.content import embed_texts
from regen.embeddings.fusion import ContentVectors, ItemVectors
from regen.embeddings.interaction_texts import interaction_texts, item_parts, review_text
from regen.embeddings.vector_store import VECTOR_DTYPE, VectorStore, text_keys
from regen.runtime.shards import INTERACTIONS, Engine
from regen.storage import identity
from regen.storage.artefacts import Artefact, build

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardTexts:
    """The distinct texts of a shard, and which of them each of its interactions has.

    Attributes:
        texts: Distinct, sorted.
        reviewed: Interactions that enter a history with their review, and the text of each.
        unreviewed: Interactions whose review is withheld somewhere, and the text of each.
        counts: Reviews of the interactions in `reviewed`, and how much of them the encoder's window cuts.
    """

    texts: list[str]
    reviewed: tuple[np.ndarray, np.ndarray]
    unreviewed: tuple[np.ndarray, np.ndarray]
    counts: dict[str, int]


@dataclass(frozen=True)
class EncodeShard:
    """Encodes those texts of a shard that the store does not hold; called by an engine, maybe on another machine."""

    prepared: Path
    root: Path
    encoder: Mapping[str, Any]
    pretrained: str
    batch_size: int
    force: bool = False

    def __call__(self, rows: tuple[int, int]) -> tuple[int, int]:
        """Takes interactions from the first to before the second; counts their texts, and those that were encoded."""
        texts = shard_texts(self.prepared, rows, pretrained=self.pretrained).texts
        embed = partial(embed_texts, pretrained=self.pretrained, batch_size=self.batch_size)
        store = VectorStore(self.root, self.encoder)
        return len(texts), store.add_missing(texts, embed, size=max(1, len(texts)), force=self.force)


def encode_content(
    encoder: Mapping[str, Any],
    *,
    pretrained: str,
    batch_size: int,
    prepared: Artefact,
    root: Path,
    engine: Engine,
    force: bool = False,
) -> Artefact:
    """Builds or reuses the content vectors of all interactions in histories, and of those whose review may be withheld.

    They do not depend on the features that a cell chooses, so that cells share them.

    Args:
        encoder: What identifies the sentence encoder, see `identity.sentence_encoder`.
        pretrained: As for `embed_texts`.
        batch_size: As for `embed_texts`.
        prepared: The data.
        root: Folder that holds artefacts.
        engine: Where texts are encoded.
        force: Encode again, those texts too whose vectors the store holds.
    """

    def make(folder: Path) -> dict[str, int]:
        shards = user_shards(prepared.path, engine.interactions)
        work = EncodeShard(prepared.path, root, encoder, pretrained, batch_size, force)
        texts, encoded = map(sum, zip(*engine.map(work, shards, name="encode"), strict=True))
        parts = (shard_texts(prepared.path, rows, pretrained=pretrained) for rows in shards)
        return {"encoded": encoded, **_assemble(folder, shards, parts, VectorStore(root, encoder), texts)}

    made = build(**identity.content(prepared.fingerprint, encoder), root=root, make=make, force=force)
    logger.info("content: %s", _coverage(made.manifest["counts"]))
    return made


def encode_items(
    encoder: Mapping[str, Any],
    *,
    pretrained: str,
    batch_size: int,
    prepared: Artefact,
    root: Path,
    force: bool = False,
) -> Artefact:
    """Builds or reuses the content vector of each item's text, without any review. Arguments as `encode_content`."""

    def make(folder: Path) -> dict[str, int]:
        _, parts = _items(prepared.path)
        texts = interaction_texts(parts, [""] * len(parts), pretrained=pretrained).texts
        distinct, store = sorted(set(texts)), VectorStore(root, encoder)
        embed = partial(embed_texts, pretrained=pretrained, batch_size=batch_size, progress=True)
        encoded = store.add_missing(distinct, embed, size=INTERACTIONS, force=force)
        np.save(folder / "vectors.npy", store.vectors(text_keys(texts)))
        return {"items": len(texts), "texts": len(distinct), "encoded": encoded}

    return build(**identity.item_content(prepared.fingerprint, encoder), root=root, make=make, force=force)


def load_item_content(artefact: Artefact, tables: Tables) -> ItemVectors:
    """Memory-mapped content vectors of items."""
    return ItemVectors(np.load(artefact.path / "vectors.npy", mmap_mode="r"), item_rows(tables).to_numpy())


def load_content(artefact: Artefact) -> ContentVectors:
    """Memory-mapped content vectors."""
    vectors, reviewed, unreviewed = (
        np.load(artefact.path / f"{name}.npy", mmap_mode="r") for name in ("vectors", "reviewed", "unreviewed")
    )
    return ContentVectors(vectors, reviewed, unreviewed)


def user_shards(prepared: Path, size: int) -> list[tuple[int, int]]:
    """Ranges of at least `size` interactions, the last one aside, that cut no user's history in two."""
    bounds, last, row = [0], None, 0
    for batch in pq.ParquetFile(prepared / "interactions.parquet").iter_batches(size, columns=["user_id"]):
        users = pl.Series(batch.column(0).cast("large_string"))
        starts = np.flatnonzero((users != users.shift(1, fill_value=last)).fill_null(True).to_numpy()) + row
        if len(late := starts[starts >= bounds[-1] + size]):
            bounds.append(int(late[0]))
        last, row = users[-1], row + len(users)
    return list(zip(bounds, [*bounds[1:], row], strict=True))


def shard_texts(prepared: Path, rows: tuple[int, int], *, pretrained: str) -> ShardTexts:
    """Texts of the interactions from the first row to before the second, as the sentence encoder reads them."""
    start, end = rows
    items, parts = _items(prepared)
    interactions = pl.scan_parquet(prepared / "interactions.parquet", glob=False).slice(start, end - start).collect()
    users = interactions["user_id"]
    narratives = pl.scan_parquet(prepared / "narratives.parquet", glob=False).filter(
        pl.col("user_id").is_between(pl.lit(users[0]), pl.lit(users[-1]))
    )
    tables = Tables(items, interactions, narratives.collect())
    everything = build_examples(tables, withhold=dict.fromkeys(FEATURES, True), max_history=len(interactions))
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
    """How much of the reviews reaches the vectors, in words."""
    share = counts["review_characters_kept"] / max(1, counts["review_characters"])
    return (
        f"{share:.1%} of the reviews' characters reach the vectors; the encoder's window cuts "
        f"{counts['reviews_cut']:,} of {counts['reviews']:,} reviews"
    )


def _assemble(
    folder: Path, shards: list[tuple[int, int]], parts: Iterable[ShardTexts], store: VectorStore, texts: int
) -> dict[str, int]:
    """Writes vectors and the row of each interaction's vector, shard by shard; rows of one user lie together."""
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
    """An `.npy` file of known shape whose rows are still to be written, one after the other."""
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
