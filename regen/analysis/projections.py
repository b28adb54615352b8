"""Soft tokens, their parts and the LM's tokens in two dimensions (paper 6.1, Figures 5 and 8)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float
from sklearn.decomposition import PCA  # type: ignore[import-untyped]
from sklearn.manifold import TSNE  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits

from regen.analysis.adapter_sample import AdapterSample
from regen.analysis.adapter_weights import split_projection
from regen.models.adapter import LinearAdapter

PERPLEXITY = 30.0  # of t-SNE, at most a third of the points
Method = Literal["tsne", "pca"]


@dataclass(frozen=True)
class Embedded:
    """Points of several groups in one plane.

    Attributes:
        method: `tsne` or `pca`.
        points: Columns `group`, `x`, `y`, one row per point.
        sizes: Number of points of each group.
        available: Number of vectors of each group, from which the points were drawn.
        seed: Seed of the draw and of t-SNE.
        perplexity: Perplexity of t-SNE.
        explained: Share of the variance that each axis of PCA explains.
    """

    method: Method
    points: pl.DataFrame
    sizes: dict[str, int]
    available: dict[str, int]
    seed: int
    perplexity: float | None = None
    explained: tuple[float, float] | None = None


def embedding_groups(sample: AdapterSample) -> dict[str, Float[np.ndarray, "vectors lm_dim"]]:
    """Vectors by group: soft tokens, LM tokens and, for the linear adapter, the projected CF and content parts."""
    groups = {"soft tokens": sample.soft.numpy()}
    if isinstance(sample.adapter, LinearAdapter):
        parts = split_projection(sample.adapter, sample.cf_dim).parts(sample.fused)
        groups |= {"CF parts": parts.cf.numpy(), "content parts": parts.content.numpy()}
    return groups | {"LM tokens": sample.token_embeddings.numpy()}


def embed_in_plane(
    groups: Mapping[str, Float[np.ndarray, "_ dim"]],
    *,
    method: Method,
    most: int = 500,
    seed: int = 0,
) -> Embedded:
    """Draws vectors of each group and places all of them in one plane.

    t-SNE preserves neighbourhoods; distances between clusters and their sizes mean nothing. PCA preserves distances
    along its two axes.

    Args:
        groups: Vectors by group.
        method: `tsne` or `pca`.
        most: The maximum number of vectors per group.
        seed: Seed of the draw and of t-SNE.
    """
    rng = np.random.default_rng(seed)
    drawn = {
        name: vectors[np.sort(rng.choice(len(vectors), min(most, len(vectors)), replace=False))]
        for name, vectors in groups.items()
    }
    together = np.concatenate(list(drawn.values())).astype(np.float64)
    sizes = {name: len(vectors) for name, vectors in drawn.items()}
    available = {name: len(vectors) for name, vectors in groups.items()}
    if method == "pca":
        pca = PCA(n_components=2, svd_solver="full")
        points = _points(pca.fit_transform(together), sizes)
        first, second = pca.explained_variance_ratio_.tolist()
        return Embedded(method, points, sizes, available, seed, explained=(first, second))
    perplexity = min(PERPLEXITY, len(together) / 3)
    tsne = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    with threadpool_limits(1):  # gives the same points on any number of cores; more threads are hardly faster
        points = _points(tsne.fit_transform(together), sizes)
    return Embedded(method, points, sizes, available, seed, perplexity=perplexity)


def _points(coordinates: Float[np.ndarray, "points 2"], sizes: Mapping[str, int]) -> pl.DataFrame:
    names = [name for name, size in sizes.items() for _ in range(size)]
    return pl.DataFrame({"group": names, "x": coordinates[:, 0], "y": coordinates[:, 1]})
