"""Statistics of a data set: histories, narratives and their ratings (paper 3.3, appendix D)."""

from pathlib import Path

import polars as pl

SCORES = range(1, 8)
"""The seven points of the rater's scale (paper 3.3)."""


def newest_artefact(data: Path, file: str) -> Path:
    """The newest artefact folder in `data` that contains the given file.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = data.glob(f"[!.]*/{file}")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise FileNotFoundError(f"{data}: no artefact with {file}. Make one: regen prepare")
    return newest.parent


def newest_ratings(data: Path) -> pl.DataFrame | None:
    """The newest ratings in `data`, with the columns that `rating_shares` needs; None if nothing was rated.

    A stage of the rater counts as a feature, since it rates several features together. Its confidence counts as one
    more attribute.
    """
    try:
        path = newest_artefact(data, "ratings.parquet") / "ratings.parquet"
    except FileNotFoundError:
        return None
    ratings = pl.read_parquet(path, glob=False).rename({"stage": "feature"})
    scores = ratings.select("feature", "attribute", pl.col("score").cast(pl.Float64))
    stages = ratings.unique(["user_id", "feature", "rater"], maintain_order=True)
    confidence = stages.select("feature", pl.lit("confidence").alias("attribute"), pl.col("confidence").alias("score"))
    return pl.concat([scores, confidence])


def items_per_user(interactions: pl.DataFrame) -> pl.DataFrame:
    """Number of distinct items that each user bought: columns `user_id`, `items`."""
    return interactions.group_by("user_id").agg(pl.col("item_id").n_unique().alias("items")).sort("user_id")


def users_per_item(interactions: pl.DataFrame) -> pl.DataFrame:
    """Number of distinct users who bought each item (paper, Figure 7): columns `item_id`, `users`."""
    return interactions.group_by("item_id").agg(pl.col("user_id").n_unique().alias("users")).sort("item_id")


def narrative_lengths(narratives: pl.DataFrame) -> pl.DataFrame:
    """Length of each narrative in words, split at white space: columns `feature`, `words`."""
    words = pl.col("text").str.count_matches(r"\S+").cast(pl.Int64)
    return narratives.select("feature", words.alias("words")).sort("feature", maintain_order=True)


def rating_shares(ratings: pl.DataFrame) -> pl.DataFrame:
    """Distribution of the scores of each attribute of each feature (paper, Figures 1 to 3).

    Scores are rounded down, as in the paper; confidences can lie between two points.

    Args:
        ratings: Columns `feature`, `attribute`, `score` (1 to 7), one row per rated narrative and attribute.

    Returns:
        Columns `feature`, `attribute`, `score`, `ratings`, `share`, with all seven scores of every attribute.

    Raises:
        ValueError: If a column is missing, or a score is not 1 to 7.
    """
    if missing := [name for name in ("feature", "attribute", "score") if name not in ratings.columns]:
        raise ValueError(f"The ratings have no column {', '.join(map(repr, missing))}; they have {ratings.columns}.")
    lowest, highest = SCORES[0], SCORES[-1]
    outside = ratings.filter(~pl.col("score").is_between(lowest, highest).fill_null(False))
    if len(outside):
        first = outside.row(0, named=True)
        raise ValueError(
            f"{len(outside):,} of {len(ratings):,} scores are not {lowest} to {highest}; the first is "
            f"{first['score']}, the {first['attribute']} of a {first['feature']}."
        )
    keys = ["feature", "attribute", "score"]
    attributes = ratings.select("feature", "attribute").unique(maintain_order=True)
    scores = pl.DataFrame({"score": list(SCORES)}, schema={"score": pl.Int64})
    counted = ratings.with_columns(pl.col("score").floor().cast(pl.Int64)).group_by(keys).len("ratings")
    return (
        attributes.join(scores, how="cross", maintain_order="left_right")
        .join(counted, on=keys, how="left", maintain_order="left")
        .with_columns(pl.col("ratings").fill_null(0).cast(pl.Int64))
        .with_columns(share=pl.col("ratings") / pl.col("ratings").sum().over("feature", "attribute"))
    )
