"""Purchases made by hand, and what CF has to find in them."""

import numpy as np
import polars as pl
import pytest

from regen.embeddings.cf import normalized_factors


def purchases(bought):
    """Rows as CF reads them, from a users x items matrix; the items of a user in the order of the catalogue."""
    users, items = np.nonzero(bought)
    return pl.DataFrame(
        {
            "user_id": users.astype(str),
            "item": items.astype(np.int64),
            "rating": pl.repeat(None, len(items), dtype=pl.Float64, eager=True),
        }
    )


def factors_of_two_circles(model):
    """Users of even number buy even items, the others odd ones; items of a circle have to be alike."""
    rng = np.random.default_rng(0)
    bought = np.zeros((60, 21))  # nobody buys item 20
    for user in range(60):
        bought[user, rng.choice(np.arange(user % 2, 20, 2), 6, replace=False)] = 1
    rows = purchases(bought).sample(fraction=1.0, shuffle=True, seed=0)
    vectors = normalized_factors(model, rows, alpha=0.0, items=21)
    assert vectors.shape == (21, 8)
    assert not vectors[20].any()
    assert np.linalg.norm(vectors[:20], axis=1).mean() == pytest.approx(1, rel=1e-4)
    unit = vectors[:20] / np.linalg.norm(vectors[:20], axis=1, keepdims=True)
    alike, even = unit @ unit.T, np.arange(20) % 2 == 0
    assert alike[np.ix_(even, even)].mean() > alike[np.ix_(even, ~even)].mean() + 0.3
    assert np.array_equal(vectors, normalized_factors(model, rows, alpha=0.0, items=21))  # a seed repeats
