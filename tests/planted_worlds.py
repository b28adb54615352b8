"""The synthetic world with narratives that name one of its two signals alone."""

from dataclasses import dataclass, replace

import polars as pl

from regen.data.synthetic import SyntheticSource
from regen.data.tables import Tables


@dataclass(frozen=True, kw_only=True)
class NeedSource(SyntheticSource):
    """Narratives name the hidden need, which only co-purchases tell."""

    def read(self) -> tuple[Tables, dict[str, int]]:
        """The world's tables with narratives of the need."""
        return _naming(super().read(), ["need"])


@dataclass(frozen=True, kw_only=True)
class TraitSource(SyntheticSource):
    """Narratives name two traits of the latest item, which only its text tells."""

    def read(self) -> tuple[Tables, dict[str, int]]:
        """The world's tables with narratives of the traits."""
        return _naming(super().read(), ["brand", "category"])


def _naming(read: tuple[Tables, dict[str, int]], labels: list[str]) -> tuple[Tables, dict[str, int]]:
    tables, counts = read
    assert tables.planted is not None
    named = tables.planted.with_columns(pl.col("forms").list.first()).pivot("label", index="user_id", values="forms")
    said = named.select("user_id", pl.concat_str(labels, separator=" ").alias("said"))
    narratives = tables.narratives.join(said, on="user_id", maintain_order="left")
    return replace(tables, narratives=narratives.with_columns(text=pl.col("said")).drop("said")), counts
