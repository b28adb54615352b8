"""What a data set looks like: histories, narratives and their ratings (paper 3.3, appendix D)."""

from pathlib import Path

import polars as pl

SCORES = range(1, 8)
"""The seven points of the rater's scale (paper 3.3)."""


def newest_artefact(data: Path, file: str) -> Path:
    """The newest artefact folder below `data` that holds the given file.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = sorted(data.glob(f"[!.]*/{file}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"{data}: no artefact with {file}. Make one: regen prepare")
    return found[-1].parent


def newest_ratings(data: Path) -> pl.DataFrame | None:
    """The newest ratings below `data` as `rating_shares` takes them; None where nothing was rated.

    A stage of the rater judges several features together and stands for them; its confidence is one attribute more.
    """
    found = sorted(data.glob("[!.]*/ratings.parquet"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    ratings = pl.read_parquet(found[-1], glob=False).rename({"stage": "feature"})
    scores = ratings.select("feature", "attribute", pl.col("score").cast(pl.Float64))
    stages = ratings.unique(["user_id", "feature", "rater"], maintain_order=True)
    confidence = stages.select("feature", pl.lit("confidence").alias("attribute"), pl.col("confidence").alias("score"))
    return pl.concat([scores, confidence])


def items_per_user(interactions: pl.DataFrame) -> pl.DataFrame:
    """Distinct items that each user bought.

    Returns:
        Columns `user_id`, `items`.
    """
    return interactions.group_by("user_id").agg(pl.col("item_id").n_unique().alias("items")).sort("user_id")


def users_per_item(interactions: pl.DataFrame) -> pl.DataFrame:
    """Distinct users who bought each item that anyone bought (paper, Figure 7).

    Returns:
        Columns `item_id`, `users`.
    """
    return interactions.group_by("item_id").agg(pl.col("user_id").n_unique().alias("users")).sort("item_id")


def narrative_lengths(narratives: pl.DataFrame) -> pl.DataFrame:
    """Length of each narrative in words, as white space divides them.

    Returns:
        Columns `feature`, `words`.
    """
    words = pl.col("text").str.count_matches(r"\S+").cast(pl.Int64)
    return narratives.select("feature", words.alias("words")).sort("feature", maintain_order=True)


def rating_shares(ratings: pl.DataFrame) -> pl.DataFrame:
    """Distribution of the scores of each attribute of each feature (paper, Figures 1 to 3).

    A score between two points, as a confidence can be, counts as the lower one: the paper rounds down.

    Args:
        ratings: Columns `feature`, `attribute`, `score` (1 to 7), a row per rated narrative and attribute.

    Returns:
        Columns `feature`, `attribute`, `score`, `ratings`, `share`; all seven scores of every attribute.

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
    attributes = ratings.select("feature", "attribute").unique(maintain_order=True)
    scores = pl.DataFrame({"score": list(SCORES)}, schema={"score": pl.Int64})
    counted = (
        ratings.with_columns(pl.col("score").floor().cast(pl.Int64))
        .group_by("feature", "attribute", "score")
        .len("ratings")
    )
    return (
        attributes.join(scores, how="cross", maintain_order="left_right")
        .join(counted, on=["feature", "attribute", "score"], how="left", maintain_order="left")
        .with_columns(pl.col("ratings").fill_null(0).cast(pl.Int64))
        .with_columns(share=pl.col("ratings") / pl.col("ratings").sum().over("feature", "attribute"))
    )
