"""Recommenders of others beside ours, on the same users and the same catalogue. They stand in a table as floors."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from regen.config.objects import plain
from regen.config.schema import TrainConfig
from regen.data.histories import Example
from regen.data.next_item import catalogue_rows, purchase_sequences
from regen.data.prepare import load_tables
from regen.evaluation.ranking import rank_of
from regen.models.closed_form import recency_means
from regen.storage import identity
from regen.storage.artefacts import Artefact, build

OPTIONS: Mapping[str, Mapping[str, float]] = {
    "item kNN": {"neighbours": 200},
    "ALS": {"factors": 128, "regularization": 1.0, "alpha": 10.0, "iterations": 15},
}
"""Chosen on the validation users of `office2014` among a few values, see docs/log.md."""

ROWS = 512  # users ranked at one time


def baselines(config: TrainConfig, prepared: Artefact) -> Artefact:
    """Builds or reuses the ranks of popularity, item kNN and ALS with fold-in for the test users.

    All are fitted on training users. Item kNN and ALS are those of `implicit`. A test user brings purchases alone,
    which count for kNN by their recency.

    Args:
        config: Of a run of `task=recommend`.
        prepared: Its data.

    Returns:
        An artefact with `ranks.parquet`: `system`, `user_id`, `rank`.
    """
    task = config.task
    settings = {
        "max_history": config.data.max_history,
        "exclude_bought": task.exclude_bought,
        "decay": task.decay,
        "split": identity.split(plain(config.split)),
        **OPTIONS,
    }

    def make(folder: Path) -> dict[str, int]:
        tables = load_tables(prepared.path, texts=False)
        item_of, size = catalogue_rows(tables), len(tables.items)
        sequences = purchase_sequences(
            tables, config.split, max_history=config.data.max_history, exclude_bought=task.exclude_bought
        )
        train = _matrix([item_of[one.rows] for one in sequences["train"]], size, decay=1.0)
        test = sequences["test"]
        histories = [item_of[one.rows[:-1]] for one in test]
        by_recency, alike = _matrix(histories, size, decay=task.decay), _matrix(histories, size, decay=1.0)
        scorers = {
            "popularity": _popularity(train),
            "item kNN": _neighbours(train, by_recency, **OPTIONS["item kNN"]),
            "ALS": _als(train, alike, **OPTIONS["ALS"]),
        }
        parts = [
            pl.DataFrame(
                {
                    "system": system,
                    "user_id": [one.user_id for one in test],
                    "rank": ranks_by(score, test, item_of, exclude_bought=task.exclude_bought),
                }
            )
            for system, score in scorers.items()
        ]
        pl.concat(parts).write_parquet(folder / "ranks.parquet")
        return {"users": len(test), "items": size}

    return build(**identity.baselines(prepared.fingerprint, settings), root=Path(config.paths.data_dir), make=make)


def ranks_by(score: Any, test: Sequence[Example], item_of: np.ndarray, *, exclude_bought: bool) -> np.ndarray:
    """Rank of each test user's last purchase by a function that scores all items for the users from one to another."""
    found = []
    for start in range(0, len(test), ROWS):
        part = test[start : start + ROWS]
        scores = torch.from_numpy(np.asarray(score(start, start + len(part)), dtype=np.float32))
        if exclude_bought:
            for row, one in enumerate(part):
                scores[row, item_of[one.rows[:-1]]] = -torch.inf
        found.append(rank_of(scores, torch.from_numpy(np.array([item_of[one.rows[-1]] for one in part]))))
    return torch.cat(found).numpy()


def content_neighbours(
    histories: Sequence[Float[np.ndarray, "history dim"]], items: Float[np.ndarray, "items dim"], *, decay: float
) -> Any:
    """Scores items by how near their text is to the recency-weighted mean of the texts of a history."""
    queries = np.stack([recency_means(one, decay)[-1] for one in histories])
    return lambda start, end: queries[start:end] @ items.T


def _matrix(rows: Sequence[np.ndarray], items: int, *, decay: float) -> sp.csr_matrix:
    """Users x items; a purchase counts `decay` times the one after it."""
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    values = np.concatenate([decay ** np.arange(len(row))[::-1] for row in rows]).astype(np.float32)
    return sp.csr_matrix((values, (users, np.concatenate(rows))), shape=(len(rows), items))


def _popularity(train: sp.csr_matrix) -> Any:
    counts = np.asarray(train.sum(axis=0))
    return lambda start, end: np.repeat(counts, end - start, axis=0)


def _neighbours(train: sp.csr_matrix, users: sp.csr_matrix, *, neighbours: float) -> Any:
    from implicit.nearest_neighbours import CosineRecommender

    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Method expects CSR input")  # it converts its own weights
        model = CosineRecommender(K=int(neighbours))
        model.fit(train, show_progress=False)
    return lambda start, end: (users[start:end] @ model.similarity).toarray()


def _als(
    train: sp.csr_matrix,
    users: sp.csr_matrix,
    *,
    factors: float,
    regularization: float,
    alpha: float,
    iterations: float,
) -> Any:
    from implicit.cpu.als import AlternatingLeastSquares

    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=int(factors),
            regularization=regularization,
            alpha=alpha,
            iterations=int(iterations),
            random_state=0,
        )
        model.fit(train, show_progress=False)
        of_users = model.recalculate_user(np.arange(users.shape[0]), users)
    return lambda start, end: of_users[start:end] @ model.item_factors.T
