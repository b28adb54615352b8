"""Collaborative filtering: item factors from purchases (paper 4.2, CF encoder)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
import scipy.sparse as sp
from jaxtyping import Float, Int


@runtime_checkable
class ItemFactorizer(Protocol):
    """A CF model that gives each item a vector."""

    factors: int

    def fit_items(self, confidence: sp.csr_matrix) -> Float[np.ndarray, "items factors"]:
        """Fits item factors to a users x items matrix of confidences."""


@runtime_checkable
class SequenceFactorizer(Protocol):
    """A CF model that reads purchases in their order and gives each item a vector."""

    factors: int

    def fit_sequences(
        self, sequences: Sequence[Int[np.ndarray, " _"]], *, items: int
    ) -> Float[np.ndarray, "items factors"]:
        """Fits item factors to the purchases of users.

        Args:
            sequences: The items that each user bought, oldest first. An item is its row in `items.parquet`.
            items: Number of items in the catalogue.

        Returns:
            A row per item. Rows of items that are in no sequence are ignored.
        """


CFModel = ItemFactorizer | SequenceFactorizer


@dataclass(kw_only=True)
class ALS:
    """Weighted alternating least squares for implicit feedback (Hu, Koren and Volinsky 2008), by `implicit`.

    Args:
        factors: Width of the item vectors.
        regularization: L2 penalty.
        iterations: Number of alternations.
        seed: Seed of the initial factors.
    """

    factors: int
    regularization: float
    iterations: int
    seed: int

    def fit_items(self, confidence: sp.csr_matrix) -> Float[np.ndarray, "items factors"]:
        from implicit.cpu.als import AlternatingLeastSquares

        return _fit(
            AlternatingLeastSquares,
            confidence,
            factors=self.factors,
            regularization=self.regularization,
            iterations=self.iterations,
            random_state=self.seed,
        )


@dataclass(kw_only=True)
class BPR:
    """Bayesian personalised ranking (Rendle et al. 2009), by `implicit`. One thread, so that results are reproducible.

    Args:
        factors: Width of the item vectors; the last one is the item's bias.
        learning_rate: Learning rate of the stochastic gradient.
        regularization: L2 penalty.
        iterations: Passes over the interactions.
        seed: Seed of the initial factors and of the sampling.
    """

    factors: int
    learning_rate: float
    regularization: float
    iterations: int
    seed: int

    def fit_items(self, confidence: sp.csr_matrix) -> Float[np.ndarray, "items factors"]:
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        return _fit(
            BayesianPersonalizedRanking,
            confidence,
            factors=self.factors - 1,  # implicit appends the bias
            learning_rate=self.learning_rate,
            regularization=self.regularization,
            iterations=self.iterations,
            num_threads=1,
            random_state=self.seed,
        )


@dataclass(kw_only=True)
class PPMI:
    """Items that are bought close to each other are alike: what item2vec learns, without sampling.

    Counts purchases of two items at most `window` apart in one history, takes the positive pointwise mutual information
    of the counts, and factorises it by a truncated SVD. Skip-gram with negative sampling factorises such a matrix, too
    (Levy and Goldberg 2014).

    Args:
        factors: Width of the item vectors.
        window: Purchases on each side that count as close.
        decay: How much less each further purchase counts than the one before it.
        seed: Seed of the SVD's start vector.
    """

    factors: int
    window: int
    decay: float
    seed: int

    def fit_sequences(
        self, sequences: Sequence[Int[np.ndarray, " _"]], *, items: int
    ) -> Float[np.ndarray, "items factors"]:
        from scipy.sparse.linalg import svds

        close = positive_information(self._counts(sequences, items))
        size = min(self.factors, items - 1)  # at most, for this SVD
        vectors = np.zeros((items, self.factors), dtype=np.float32)
        if close.nnz and size > 0:
            start = np.random.default_rng(self.seed).normal(size=items)
            left, values, _ = svds(close, k=size, v0=start)
            vectors[:, :size] = left * np.sqrt(values)
        return vectors

    def _counts(self, sequences: Sequence[Int[np.ndarray, " _"]], items: int) -> sp.csr_matrix:
        """How often two items are close, in both orders; items x items."""
        counts = sp.csr_matrix((items, items))
        for apart in range(1, self.window + 1):
            pairs = [(one[:-apart], one[apart:]) for one in sequences if len(one) > apart]
            if pairs:
                earlier, later = (np.concatenate(side) for side in zip(*pairs, strict=True))
                weight = np.full(len(earlier), self.decay ** (apart - 1))
                counts += sp.csr_matrix((weight, (earlier, later)), shape=counts.shape)
        return counts + counts.T


def positive_information(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Positive pointwise mutual information of a symmetric matrix of counts: max(0, log(n_ij n / (n_i n_j)))."""
    found = counts.tocoo()
    total = np.asarray(counts.sum(axis=1)).ravel()
    values = np.log(found.data * total.sum() / (total[found.row] * total[found.col]))
    return sp.csr_matrix((np.maximum(values, 0), (found.row, found.col)), shape=counts.shape)


def confidence_matrix(interactions: pl.DataFrame, *, alpha: float, items: int) -> sp.csr_matrix:
    """Users x items matrix of confidences c = 1 + alpha * rating / 5. A missing rating counts as 5.

    Args:
        interactions: Columns `user_id`, `item` (row of the item in `items.parquet`) and `rating`.
        alpha: What the highest rating adds to the confidence.
        items: Number of items in the catalogue.
    """
    users = interactions["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
    weight = 1.0 + alpha * interactions["rating"].fill_null(5.0).to_numpy() / 5.0
    shape = (int(users.max()) + 1 if len(users) else 0, items)
    return sp.csr_matrix((weight.astype(np.float32), (users, interactions["item"].to_numpy())), shape=shape)


def item_sequences(interactions: pl.DataFrame) -> list[Int[np.ndarray, " _"]]:
    """The items that each user bought, in the order of the rows.

    Args:
        interactions: Columns `user_id` and `item` (row of the item in `items.parquet`), sorted by time for each user.
    """
    return [items.to_numpy() for items in interactions.group_by("user_id", maintain_order=True).agg("item")["item"]]


def normalized_factors(
    model: CFModel, interactions: pl.DataFrame, *, alpha: float, items: int
) -> Float[np.ndarray, "items factors"]:
    """Item factors divided by their mean L2 norm (paper 4.2), which keeps popularity in the norm.

    Items without training interactions get a zero vector. Zero vectors are excluded from the mean.

    Args:
        model: A model that reads confidences or sequences.
        interactions: Columns `user_id`, `item` and `rating`, sorted by time for each user.
        alpha: What the highest rating adds to a confidence.
        items: Number of items in the catalogue.

    Raises:
        ValueError: If there is no interaction to fit on, or the factors are zero, not finite or of another shape.
    """
    if interactions.is_empty():
        raise ValueError("CF has nothing to fit on: no training user has an interaction without a narrative about it.")
    if isinstance(model, SequenceFactorizer):
        factors = model.fit_sequences(item_sequences(interactions), items=items)
    else:
        factors = model.fit_items(confidence_matrix(interactions, alpha=alpha, items=items))
    if factors.shape != (items, model.factors):
        raise ValueError(
            f"{type(model).__name__} gave CF factors of shape {factors.shape}. It has to return {items:,} items x "
            f"{model.factors} factors, as its attribute `factors` says."
        )
    factors[np.bincount(interactions["item"], minlength=items) == 0] = 0
    norms = np.linalg.norm(factors, axis=1)
    if not np.isfinite(factors).all() or not norms.any():
        raise ValueError(
            "CF gave factors that are zero or not finite. Lower cf.alpha, or change cf.model: more regularization, or "
            "a lower learning rate if it has one."
        )
    return factors / norms[norms > 0].mean()


def _fit(model: Callable[..., Any], confidence: sp.csr_matrix, **options: Any) -> Float[np.ndarray, "items factors"]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # implicit has its own threads
        fitted = model(**options)
        fitted.fit(confidence, show_progress=True)
    return np.array(fitted.item_factors, dtype=np.float32)
