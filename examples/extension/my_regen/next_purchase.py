"""A CF model that knows which item is bought right after which."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp


class NextPurchase:
    """Factors of the matrix that counts how often an item follows another one.

    Args:
        factors: Width of the item vectors; less than the number of items.
    """

    def __init__(self, factors: int) -> None:
        self.factors = factors

    def fit_sequences(self, sequences: Sequence[np.ndarray], *, items: int) -> np.ndarray:
        before = np.concatenate([bought[:-1] for bought in sequences])
        after = np.concatenate([bought[1:] for bought in sequences])
        counts = sp.csr_matrix((np.ones(len(before)), (before, after)), shape=(items, items))
        left, strengths, _ = sp.linalg.svds(counts.log1p(), k=self.factors, random_state=0)
        return (left * strengths).astype(np.float32)
