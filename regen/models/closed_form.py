"""The closed-form recommender: a ridge regression from the recency-weighted mean of a history to the next item.

It can read the last purchase apart from the mean. It is fitted in seconds and ranks about as well as a tuned SASRec on
small data. It is the warm start of the LM recommender and a column of its own in tables. Scores are bilinear,
`query(history) @ item`, so that an item without purchases is ranked by its text.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

USERS = 512  # users per matrix product
ROWS = 65_536  # items per matrix product


def recency_means(history: Float[np.ndarray, "history dim"], decay: float) -> Float[np.ndarray, "history dim"]:
    """Weighted mean of all purchases up to each one; each weighs `decay` times as much as the next one."""
    ages = np.arange(len(history))[:, None] - np.arange(len(history))
    weights = np.where(ages >= 0, float(decay) ** np.maximum(ages, 0), 0.0)
    return ((weights / weights.sum(axis=1, keepdims=True)) @ history).astype(np.float32)


class ClosedForm:
    """A bilinear map from histories and critiques to items, with an intercept and a popularity term.

    Args:
        items: Vector of each item of the catalogue.
        bought: How often training users bought each item.
        decay: See `recency_means`.
        ridge: Penalty on histories, in mean variances.
        item_ridge: Penalty on items, in mean variances.
        last_apart: Whether the last purchase is an input of its own, beside the mean.

    Attributes:
        bought: As in the arguments.
        scale: Factor of the history's part of a query, which calibrates the softmax of scores; see `calibrate`.
        said_scale: Factor of the critique's part.
        popularity: Weight of the log count of an item; 0 if it does not help.
    """

    def __init__(
        self,
        items: Float[np.ndarray, "items dim"],
        bought: Int[np.ndarray, " items"],
        *,
        decay: float,
        ridge: float,
        item_ridge: float,
        last_apart: bool = False,
    ) -> None:
        self.items = torch.from_numpy(np.ascontiguousarray(items, dtype=np.float32))
        self.bought = np.asarray(bought)
        self.log_counts = torch.from_numpy(np.log1p(bought).astype(np.float32))
        self.decay, self.ridge, self.item_ridge, self.last_apart = decay, ridge, item_ridge, last_apart
        self.scale, self.said_scale, self.popularity = 1.0, 1.0, 0.0
        self._sums: list[tuple[np.ndarray, np.ndarray]] = []  # Gram matrix and cross products of each fold
        self._maps: dict[int | None, np.ndarray] = {}  # by the fold left out; None for all users

    def fit(
        self,
        histories: Iterable[
            tuple[Float[np.ndarray, "_ dim"], Float[np.ndarray, "_ said"] | None, Int[np.ndarray, " _"]]
        ],
        folds: Sequence[int],
    ) -> None:
        """Fits the map for all training users, and for each fold the map without its users.

        Args:
            histories: For each user, the vectors of all purchases but the last, the vectors of the critiques or None,
                and the catalogue row of each next item.
            folds: Fold of each user, from 0.
        """
        vectors = self.items.numpy()
        sums: list[Any] = [(0.0, 0.0) for _ in range(max(folds) + 1)]
        waiting: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in sums]

        def add(fold: int) -> None:
            read = np.concatenate([rows for rows, _ in waiting[fold]])
            targets = vectors[np.concatenate([items for _, items in waiting[fold]])]
            sums[fold] = (sums[fold][0] + read.T @ read, sums[fold][1] + read.T @ targets)
            waiting[fold].clear()

        for (history, said, targets), fold in zip(histories, folds, strict=True):
            waiting[fold].append((self._read(history, said), np.asarray(targets)))
            if len(waiting[fold]) == USERS:
                add(fold)
        for fold in range(len(sums)):
            if waiting[fold]:
                add(fold)
        self._sums, self._maps = sums, {}

    def with_ridge(self, ridge: float) -> "ClosedForm":
        """A copy with another penalty on histories, not calibrated."""
        other = copy.copy(self)
        other.ridge, other._maps = ridge, {}
        other.scale, other.said_scale, other.popularity = 1.0, 1.0, 0.0
        return other

    def solved(self, *, folds: bool) -> dict[int | None, Float[np.ndarray, "inputs dim"]]:
        """The map of all training users, at key None.

        Args:
            folds: Whether to add the map without each fold, at the fold's number.
        """
        numbers = sorted({*range(len(self._sums)), *(fold for fold in self._maps if fold is not None)}) if folds else []
        return {fold: self._map(fold) for fold in (None, *numbers)}

    def restore(self, maps: Mapping[int | None, Float[np.ndarray, "inputs dim"]]) -> None:
        """Takes the maps that `solved` gave, instead of `fit`."""
        self._sums, self._maps = [], dict(maps)

    def _map(self, fold: int | None) -> Float[np.ndarray, "inputs dim"]:
        """The map of all training users, or of those outside a fold; solved at the first call."""
        if fold not in self._maps:
            assert self._sums, f"fitted nowhere, or restored without fold {fold}"
            sums = [one for number, one in enumerate(self._sums) if number != fold]
            inner, outer = (np.asarray(sum(one[side] for one in sums), dtype=np.float64) for side in (0, 1))
            of_items = _penalised(_gram(self.items), self.item_ridge)
            solved = np.linalg.solve(_penalised(inner, self.ridge, but_last=True), outer)
            self._maps[fold] = np.linalg.solve(of_items, solved.T).T.astype(np.float32)
        return self._maps[fold]

    def queries(
        self,
        history: Float[np.ndarray, "history dim"],
        said: Float[np.ndarray, "history said"] | None = None,
        *,
        fold: int | None = None,
    ) -> Float[np.ndarray, "history dim"]:
        """Scaled query for the next item after each purchase.

        Args:
            history: Vectors of the purchases, oldest first.
            said: Vectors of the critiques, zero without one; None if `fit` had none.
            fold: Fold to leave out, that of a training user; None for other users.
        """
        read, width = self._read(history, said), self.items.shape[1] * (1 + self.last_apart)
        read[:, width:-1] *= self.said_scale
        read[:, :width] *= self.scale
        read[:, -1] *= self.scale
        return np.asarray(read @ self._map(fold), dtype=np.float32)

    def _read(self, history: np.ndarray, said: np.ndarray | None) -> np.ndarray:
        """Inputs of the map at each purchase: last purchase and recency mean, critique, a one for the intercept."""
        parts = [*([history] if self.last_apart else []), recency_means(history, self.decay)]
        parts += [] if said is None else [said]
        return np.concatenate([*parts, np.ones((len(history), 1))], axis=1, dtype=np.float32)

    @property
    def bias(self) -> Float[torch.Tensor, " items"]:
        """The popularity term of each item's score."""
        return self.popularity * self.log_counts

    def calibrate(
        self,
        histories: Sequence[tuple[Float[np.ndarray, "_ dim"], Float[np.ndarray, "_ said"] | None]],
        targets: Int[np.ndarray, " users"],
        bought: Sequence[Int[np.ndarray, " _"]],
    ) -> float:
        """Fits the scales and `popularity` by cross-entropy over the catalogue.

        `popularity` is 0 if it would lower the mean reciprocal rank.

        Args:
            histories: Purchase and critique vectors of users that `fit` has not seen.
            targets: Catalogue row of each user's next item.
            bought: Catalogue rows excluded for each user.

        Returns:
            The mean reciprocal rank of the next items.
        """
        parts = [(1.0, 0.0), (0.0, 1.0)] if histories[0][1] is not None else [(1.0, 0.0)]
        scores = []
        for self.scale, self.said_scale in parts:
            scores.append(torch.from_numpy(np.stack([self.queries(*one)[-1] for one in histories])) @ self.items.T)
        candidates = torch.ones_like(scores[0], dtype=torch.bool)
        for row, items in enumerate(bought):
            candidates[row, items] = False
        wanted = torch.from_numpy(targets)
        found = []
        for columns in ([*scores, self.log_counts.expand_as(scores[0])], scores):
            weights = _weights(columns, candidates, wanted)
            total = torch.stack([w * column for w, column in zip(weights, columns, strict=True)]).sum(dim=0)
            found.append((_reciprocal_rank(total.masked_fill(~candidates, -torch.inf), wanted), weights))
        quality, weights = max(found, key=lambda one: one[0])
        self.scale = weights[0]
        self.said_scale = weights[1] if len(scores) > 1 else 1.0
        self.popularity = weights[len(scores)] if len(weights) > len(scores) else 0.0
        return quality


def _weights(columns: Sequence[Tensor], candidates: Tensor, wanted: Tensor) -> list[float]:
    """Weights of score columns that minimise the cross-entropy of their sum."""
    units = [float(column[candidates].std().clamp_min(1e-12)) for column in columns]
    scaled = torch.stack([column / unit for column, unit in zip(columns, units, strict=True)])
    weights = torch.ones(len(columns), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        sums = (weights[:, None, None] * scaled).sum(dim=0).masked_fill(~candidates, -torch.inf)
        value = torch.nn.functional.cross_entropy(sums, wanted)
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return [float(weight) / unit for weight, unit in zip(weights.detach(), units, strict=True)]


def _reciprocal_rank(scores: Tensor, wanted: Tensor) -> float:
    own = scores.gather(1, wanted[:, None])
    return float((1.0 / (scores >= own).sum(dim=1)).mean())  # the last place among equal scores


def _gram(vectors: Float[Tensor, "items dim"]) -> Float[np.ndarray, "dim dim"]:
    """Sum of the outer products of all rows, in float64; a few rows are in memory at a time."""
    parts = (part.numpy().astype(np.float64) for part in torch.split(vectors, ROWS))
    return np.asarray(sum(part.T @ part for part in parts))


def _penalised(gram: np.ndarray, strength: float, *, but_last: bool = False) -> np.ndarray:
    """Adds a penalty in mean variances; with `but_last`, the last input (the intercept) has none."""
    inner = gram[:-1, :-1] if but_last else gram
    penalty = np.full(len(gram), strength * max(np.trace(inner) / len(inner), 1e-12))
    if but_last:
        penalty[-1] = 0
    return gram + np.diag(penalty)
