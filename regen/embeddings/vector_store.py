"""A store of all content vectors by the hash of their text, so that no text is encoded twice.

The store of one sentence encoder is a folder of segments. A segment is an artefact, identified by its texts. So a
killed job keeps its finished segments, two jobs never encode the same segment, and a damaged one is built again.
"""

import functools
import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, UInt64

from regen.storage import identity
from regen.storage.artefacts import DamagedArtefactError, build, fingerprint, installed_versions, open_artefact

logger = logging.getLogger(__name__)
STAGE = "segment"
VECTOR_DTYPE = np.float16  # of stored content vectors

Keys = UInt64[np.ndarray, "texts 2"]
Embed = Callable[[Sequence[str]], np.ndarray]


def text_keys(texts: Sequence[str]) -> Keys:
    """128-bit hashes of texts, each as two numbers."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(bytearray(digests), dtype="<u8").reshape(-1, 2)


@dataclass(frozen=True)
class Segment:
    """Memory-mapped keys, sorted by their first half, and the vector of each key."""

    keys: UInt64[np.ndarray, "2 texts"]
    vectors: Float16[np.ndarray, "texts dim"]

    def rows(self, keys: Keys) -> np.ndarray:
        """Row of each key, -1 if it is not in the segment."""
        at = np.minimum(np.searchsorted(self.keys[0], keys[:, 0]), self.keys.shape[1] - 1)
        return np.where((self.keys[0][at] == keys[:, 0]) & (self.keys[1][at] == keys[:, 1]), at, -1)


class VectorStore:
    """The vectors of one sentence encoder.

    Args:
        root: Folder of the artefacts.
        encoder: From `identity.sentence_encoder`. With the library versions, it identifies the store.
    """

    def __init__(self, root: Path, encoder: Mapping[str, Any]) -> None:
        self.encoder = dict(encoder)
        whole = identity.segment(self.encoder, "")
        recipe = {**whole, "libraries": installed_versions(whole["libraries"])}
        self.folder = root / f"vectors-{fingerprint(recipe)}"

    @property
    def dim(self) -> int:
        """Width of the vectors; 0 in an empty store."""
        return next((segment.vectors.shape[1] for segment in self._segments()), 0)

    def missing(self, keys: Keys) -> np.ndarray:
        """Mask of the keys that are in no segment."""
        missing = np.ones(len(keys), dtype=bool)
        for segment in self._segments():
            missing &= segment.rows(keys) < 0
        return missing

    def add(self, texts: Sequence[str], keys: Keys, embed: Embed, *, force: bool = False) -> None:
        """Encodes texts into a new segment, unless it exists.

        Args:
            texts: Distinct texts.
            keys: Their hashes.
            embed: Returns a vector for each text.
            force: Encode even if the segment exists.
        """
        order = np.lexsort((keys[:, 1], keys[:, 0]))

        def make(folder: Path) -> dict[str, int]:
            vectors = embed([texts[row] for row in order]).astype(VECTOR_DTYPE)
            np.save(folder / "keys.npy", np.ascontiguousarray(keys[order].T))
            np.save(folder / "vectors.npy", vectors)
            return {"texts": len(vectors)}

        request = identity.segment(self.encoder, hashlib.sha256(keys[order].tobytes()).hexdigest())
        build(**request, root=self.folder, make=make, force=force)

    def add_missing(self, texts: Sequence[str], embed: Embed, *, size: int, force: bool = False) -> int:
        """Encodes the texts that are not in the store, and returns their number.

        Args:
            texts: Distinct texts.
            embed: Returns a vector for each text.
            size: Maximum number of texts per segment, which is the most that a killed job has to repeat.
            force: Encode all texts.
        """
        keys = text_keys(texts)
        missing = np.arange(len(keys)) if force else np.flatnonzero(self.missing(keys))
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            self.add([texts[at] for at in part], keys[part], embed, force=force)
        return len(missing)

    def vectors(self, keys: Keys) -> Float16[np.ndarray, "texts dim"]:
        """Vectors of keys. All of them must be in the store."""
        found = np.empty((len(keys), self.dim), dtype=VECTOR_DTYPE)
        missing = np.ones(len(keys), dtype=bool)
        for segment in self._segments():
            rows = segment.rows(keys)
            here = missing & (rows >= 0)
            found[here] = segment.vectors[rows[here]]
            missing &= ~here
        if missing.any():
            raise RuntimeError(
                f"{self.folder}: {missing.sum()} of {len(keys)} vectors disappeared while they were read. "
                "Do not delete from a store in use. Run the command again."
            )
        return found

    def _segments(self) -> list[Segment]:
        """All complete segments, newest first. Damaged ones are deleted, so that their texts are encoded again."""
        found: list[tuple[int, Segment]] = []
        for folder in sorted(self.folder.glob(f"{STAGE}-*")):
            try:
                open_artefact(folder)
                changed = (folder / "vectors.npy").stat().st_mtime_ns
                found.append((changed, _mapped(folder, changed)))
            except FileNotFoundError:  # another process is replacing it
                continue
            except DamagedArtefactError as problem:
                logger.warning("Deleting a damaged segment, whose texts are encoded again: %s", problem)
                shutil.rmtree(folder, ignore_errors=True)
        return [segment for _, segment in sorted(found, key=lambda one: -one[0])]


@functools.lru_cache(maxsize=1 << 14)
def _mapped(folder: Path, changed: int) -> Segment:
    keys, vectors = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("keys", "vectors"))
    return Segment(keys, vectors)
