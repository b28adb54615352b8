"""Baseline recommenders on the same users and catalogue; tables show them as floors.

All are fitted on training users. Their settings are tuned on validation users, over no more values than the closed form
has. Of test users they see only purchases.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

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

Scores = Callable[[int, int], np.ndarray]
"""Maps a range of users (start, end) to their scores of all items."""
Recommender = Callable[[Sequence[np.ndarray]], Scores]
"""Maps histories (rows of the catalogue, oldest first) to scores."""

DECAYS = (0.7, 0.85, 1.0)
NEIGHBOURS = (50, 200)
ALS = {"factors": (64, 128), "alpha": (1.0, 10.0), "iterations": (15,), "regularization": (1.0,)}
VERSION = 2
ROWS = 512  # users ranked at a time


def baselines(config: TrainConfig, prepared: Artefact) -> Artefact:
    """Builds or reuses the ranks of popularity, item kNN and ALS with fold-in (the last two from `implicit`).

    Args:
        config: Config of a run of `task=recommend`.
        prepared: The run's prepared data.

    Returns:
        An artefact with two files. `ranks.parquet`: `system`, `user_id`, `item_id`, `rank`, `chosen` (the setting).
        `sequences.parquet`: `user_id`, `split`, `items`, for recommenders that run elsewhere (`benchmarks/sasrec.py`).
    """
    task, history = config.task, config.data.max_history
    settings = {
        "max_history": history,
        "exclude_bought": task.exclude_bought,
        "split": identity.split(plain(config.split)),
        "version": VERSION,
    }

    def make(folder: Path) -> dict[str, int]:
        tables = load_tables(prepared.path, texts=False)
        item_of, size = catalogue_rows(tables), len(tables.items)
        users = purchase_sequences(tables, config.split, max_history=history, exclude_bought=task.exclude_bought)
        train = _matrix([item_of[one.rows] for one in users["train"]], size, decay=1.0)
        options = [dict(zip(ALS, values, strict=True)) for values in product(*ALS.values())]
        systems: dict[str, dict[str, Recommender]] = {
            "popularity": {"": _popularity(train)},
            "item kNN": {
                f"{count} neighbours, decay {decay:g}": _neighbours(train, count, decay)
                for count, decay in product(NEIGHBOURS, DECAYS)
            },
            "ALS": {", ".join(f"{name} {value:g}" for name, value in of.items()): _als(train, **of) for of in options},
        }
        parts = []
        for system, candidates in systems.items():
            chosen, ranks = best_of(candidates, users, item_of, exclude_bought=task.exclude_bought)
            columns = {
                "system": system,
                "user_id": [one.user_id for one in users["test"]],
                "item_id": [one.item_id for one in users["test"]],
                "rank": ranks,
                "chosen": chosen,
            }
            parts.append(pl.DataFrame(columns))
        pl.concat(parts).write_parquet(folder / "ranks.parquet")
        ids = tables.items["item_id"].to_list()
        sequences = [
            (one.user_id, split, [ids[row] for row in item_of[one.rows]]) for split in users for one in users[split]
        ]
        pl.DataFrame(sequences, schema=["user_id", "split", "items"], orient="row").write_parquet(
            folder / "sequences.parquet"
        )
        return {"users": len(users["test"]), "items": size}

    return build(**identity.baselines(prepared.fingerprint, settings), root=Path(config.paths.data_dir), make=make)


def best_of(
    candidates: Mapping[str, Recommender],
    users: Mapping[str, Sequence[Example]],
    item_of: np.ndarray,
    *,
    exclude_bought: bool,
) -> tuple[str, np.ndarray]:
    """The setting with the best mean reciprocal rank on validation users, and its ranks for the test users."""

    def ranks(name: str, split: str) -> np.ndarray:
        histories = [item_of[one.rows[:-1]] for one in users[split]]
        return ranks_by(candidates[name](histories), users[split], item_of, exclude_bought=exclude_bought)

    quality = {
        name: 0.0 if len(candidates) == 1 else float((1 / ranks(name, "validation")).mean()) for name in candidates
    }
    best = max(quality, key=quality.__getitem__)
    return best, ranks(best, "test")


def ranks_by(score: Scores, users: Sequence[Example], item_of: np.ndarray, *, exclude_bought: bool) -> np.ndarray:
    """Rank of each user's last purchase."""
    found = []
    for start in range(0, len(users), ROWS):
        part = users[start : start + ROWS]
        scores = torch.from_numpy(np.array(score(start, start + len(part)), dtype=np.float32))
        if exclude_bought:
            for row, one in enumerate(part):
                scores[row, item_of[one.rows[:-1]]] = -torch.inf
        found.append(rank_of(scores, torch.from_numpy(np.array([item_of[one.rows[-1]] for one in part]))))
    return torch.cat(found).numpy()


def content_neighbours(items: Float[np.ndarray, "items dim"]) -> dict[str, Recommender]:
    """Ranks items by the similarity of their text vectors to the recency-weighted mean of the history, by decay."""

    def recommender(decay: float) -> Recommender:
        def scores(histories: Sequence[np.ndarray]) -> Scores:
            queries = np.stack([recency_means(items[history], decay)[-1] for history in histories])
            return lambda start, end: queries[start:end] @ items.T

        return scores

    return {f"decay {decay:g}": recommender(decay) for decay in DECAYS}


def _matrix(rows: Sequence[np.ndarray], items: int, *, decay: float) -> sp.csr_matrix:
    """The users x items matrix, in which a purchase counts `decay` times as much as the one after it."""
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    values = np.concatenate([decay ** np.arange(len(row))[::-1] for row in rows]).astype(np.float32)
    return sp.csr_matrix((values, (users, np.concatenate(rows))), shape=(len(rows), items))


def _popularity(train: sp.csr_matrix) -> Recommender:
    counts = np.asarray(train.sum(axis=0))
    return lambda histories: lambda start, end: np.repeat(counts, end - start, axis=0)


def _neighbours(train: sp.csr_matrix, count: int, decay: float) -> Recommender:
    from implicit.nearest_neighbours import CosineRecommender

    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Method expects CSR input")  # about implicit's own weights
        model = CosineRecommender(K=count)
        model.fit(train, show_progress=False)

    def scores(histories: Sequence[np.ndarray]) -> Scores:
        users = _matrix(histories, train.shape[1], decay=decay)
        return lambda start, end: (users[start:end] @ model.similarity).toarray()

    return scores


def _als(
    train: sp.csr_matrix, *, factors: float, alpha: float, iterations: float, regularization: float
) -> Recommender:
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

    def scores(histories: Sequence[np.ndarray]) -> Scores:
        with threadpool_limits(1, "blas"):
            users = _matrix(histories, train.shape[1], decay=1.0)
            of_users = model.recalculate_user(np.arange(users.shape[0]), users)
        return lambda start, end: of_users[start:end] @ model.item_factors.T

    return scores
