"""Similarity: cosine of the sentence embeddings of two texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

Embed = Callable[[list[str]], Float[np.ndarray, "texts dim"]]
"""Returns one unit-norm row per text."""

Vectors = Mapping[str, Float[np.ndarray, " dim"]]
"""The embedding of each text."""


def unit_vectors(texts: Iterable[str], embed: Embed) -> Vectors:
    """The embedding of each distinct text; a blank text may have the zero vector.

    Raises:
        ValueError: when `embed` returns a wrong number of rows, or rows without unit norm.
    """
    distinct = sorted(set(texts))
    vectors = np.asarray(embed(distinct), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(distinct):
        raise ValueError(
            f"embed returned an array of shape {vectors.shape} for {len(distinct)} texts; it must be (texts, dim)."
        )
    norms = np.linalg.norm(vectors, axis=1)
    unit = np.abs(norms - 1.0) < 1e-3  # nan is not
    blank = np.array([not text.strip() for text in distinct])
    wrong = np.flatnonzero(~(unit | (blank & (norms == 0))))
    if wrong.size:
        raise ValueError(
            f"embed returned a vector of norm {norms[wrong[0]]:.4g} for {distinct[wrong[0]][:60]!r}; similarity needs "
            "unit norm (within 0.001). Normalise the embeddings."
        )
    return dict(zip(distinct, vectors, strict=True))


def similarity_column(predictions: Sequence[str], references: Sequence[str], vectors: Vectors) -> list[float]:
    """Cosine of the sentence embeddings of prediction and reference."""
    return [float(vectors[text] @ vectors[told]) for text, told in zip(predictions, references, strict=True)]
