"""Splits by user (paper 5.1): a hash of the user id decides, so no user moves when rows are added."""

import hashlib
from collections.abc import Sequence

import polars as pl


def split_of(user_ids: Sequence[str], *, validation: float, test: float, salt: str = "regen") -> pl.Series:
    """`train`, `validation` or `test` for each user.

    Args:
        user_ids: Any users, in any order.
        validation: Share of users in validation.
        test: Share of users in test.
        salt: Enters the hash; another salt draws another split.

    Raises:
        ValueError: If the shares are not between 0 and 1, or leave nothing to train on.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"split.validation={validation} and split.test={test} have to be shares of at least 0 whose sum is below 1."
        )
    names = []
    for user in user_ids:
        digest = hashlib.blake2b(f"{salt}\0{user}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        names.append("test" if place < test else "validation" if place < test + validation else "train")
    return pl.Series("split", names, dtype=pl.String)
