"""Collaborative filtering: item factors from who bought what (paper 4.2, CF encoder)."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
import scipy.sparse as sp
from jaxtyping import Float


@runtime_checkable
class ItemFactorizer(Protocol):
    """A CF model that gives each item a vector."""

    factors: int

    def fit_items(self, confidence: sp.csr_matrix) -> Float[np.ndarray, "items factors"]:
        """Item factors from a users x items matrix of confidences."""


class ALS:
    """Weighted alternating least squares for implicit feedback (Hu, Koren and Volinsky 2008), by `implicit`.

    Args:
        factors: Width of the item vectors.
        regularization: L2 penalty.
        iterations: Alternations.
        seed: Of the factors' start.
    """

    def __init__(self, *, factors: int, regularization: float, iterations: int, seed: int) -> None:
        self.factors = factors
        self.regularization = regularization
        self.iterations = iterations
        self.seed = seed

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


class BPR:
    """Bayesian personalised ranking (Rendle et al. 2009), by `implicit`; one thread, so that a seed repeats.

    Args:
        factors: Width of the item vectors; the last one is the item's bias.
        learning_rate: Of the stochastic gradient.
        regularization: L2 penalty.
        iterations: Passes over the interactions.
        seed: Of the factors' start and the sampling.
    """

    def __init__(
        self, *, factors: int, learning_rate: float, regularization: float, iterations: int, seed: int
    ) -> None:
        self.factors = factors
        self.learning_rate = learning_rate
        self.regularization = regularization
        self.iterations = iterations
        self.seed = seed

    def fit_items(self, confidence: sp.csr_matrix) -> Float[np.ndarray, "items factors"]:
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        return _fit(
            BayesianPersonalizedRanking,
            confidence,
            factors=self.factors - 1,  # implicit appends the bias as one more
            learning_rate=self.learning_rate,
            regularization=self.regularization,
            iterations=self.iterations,
            num_threads=1,
            random_state=self.seed,
        )


def confidence_matrix(interactions: pl.DataFrame, *, alpha: float, items: int) -> sp.csr_matrix:
    """Users x items matrix of confidences c = 1 + alpha * rating / 5; an interaction without a rating counts as 5.

    Args:
        interactions: Columns `user_id`, `item` (row of the item in `items.parquet`) and `rating`.
        alpha: What the highest rating adds to the confidence.
        items: How many items there are, fitted or not.
    """
    users = interactions["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
    weight = 1.0 + alpha * interactions["rating"].fill_null(5.0).to_numpy() / 5.0
    shape = (int(users.max()) + 1 if len(users) else 0, items)
    return sp.csr_matrix((weight.astype(np.float32), (users, interactions["item"].to_numpy())), shape=shape)


def item_vectors(model: ItemFactorizer, confidence: sp.csr_matrix) -> Float[np.ndarray, "items factors"]:
    """Item factors divided by their mean L2 norm (paper 4.2), so that popularity survives in the norm.

    An item that no user of `confidence` touched has the zero vector and does not count in the mean.

    Raises:
        ValueError: If there is no interaction to fit on, or the factors are not finite.
    """
    if confidence.nnz == 0:
        raise ValueError("CF has nothing to fit on: no training user has an interaction that no narrative speaks of.")
    factors = model.fit_items(confidence)
    if not np.isfinite(factors).all():
        raise ValueError("CF gave factors that are not finite; lower cf.alpha or raise cf.regularization.")
    touched = np.asarray(confidence.getnnz(axis=0) > 0)
    factors[~touched] = 0
    return factors / np.linalg.norm(factors[touched], axis=1).mean()


def _fit(model: Callable[..., Any], confidence: sp.csr_matrix, **options: Any) -> Float[np.ndarray, "items factors"]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # implicit threads over rows itself; BLAS threads inside would fight it
        fitted = model(**options)
        fitted.fit(confidence, show_progress=True)
    return np.array(fitted.item_factors, dtype=np.float32)
