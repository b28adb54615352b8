"""Splits by user (paper 5.1): a hash of the user id decides, so no user moves when rows are added."""

import hashlib

import polars as pl

from regen.config.schema import Split


def split_of(user_ids: pl.Series, split: Split) -> pl.Series:
    """`train`, `validation` or `test` for each user.

    Args:
        user_ids: Any users, in any order.
        split: Shares of users, and the salt that enters the hash: another salt draws another split.

    Raises:
        ValueError: If the shares are not between 0 and 1, or leave nothing to train on.
    """
    validation, test = split.validation, split.test
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"split.validation={validation} and split.test={test} have to be shares of at least 0 whose sum is below 1."
        )
    distinct = user_ids.unique()
    names = []
    for user in distinct.to_list():
        digest = hashlib.blake2b(f"{split.salt}\0{user}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        names.append("test" if place < test else "validation" if place < test + validation else "train")
    drawn = pl.DataFrame({"user_id": distinct, "split": pl.Series(names, dtype=pl.String)})
    return user_ids.to_frame("user_id").join(drawn, on="user_id", how="left", maintain_order="left")["split"]
