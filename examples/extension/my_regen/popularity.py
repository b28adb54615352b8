"""A CF model that knows only how often an item was bought."""

import numpy as np
import scipy.sparse as sp


class Popularity:
    """One factor: the logarithm of an item's purchases."""

    factors = 1

    def fit_items(self, confidence: sp.csr_matrix) -> np.ndarray:
        return np.log1p(confidence.getnnz(axis=0)).astype(np.float32)[:, None]
