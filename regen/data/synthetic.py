"""Source `synthetic`: generated data with a known, planted signal.

Texts name an item's traits (category, brand, colour, price band) but not the need it serves. Co-purchases reveal the
need but not the traits, which are drawn independently of it. Narratives name both: the traits of the user's latest item
and the user's hidden need. So content recovers the traits, CF recovers the need, and only both together recover both.
Many items share one combination of traits, so a text identifies neither the item nor its need.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from regen.data.source import TablesSource
from regen.data.synthetic_text import (
    BLAME,
    DESCRIPTIONS,
    LEXICON,
    NARRATIVES,
    PRAISE,
    REVIEW_TITLES,
    TRAITS,
    Lexicon,
    filled,
)
from regen.data.tables import ITEM_FEATURES, PLANTED, Tables, sort_interactions

DAY = 86_400
FIRST_DAY = 17_000  # July 2016, in days since 1970
RATINGS = (0.03, 0.05, 0.12, 0.3, 0.5)  # shares of one to five stars
SKEW = 1.5  # of popularity within a need: rank ~ uniform ** SKEW


@dataclass(frozen=True)
class Truth:
    """The true purchase probabilities of a synthetic world.

    Attributes:
        item_ids: Ids in the order of the item arrays below.
        need_of_item: The need that each item serves.
        within: Probability of each item among the items of its need.
        need_of_user: The need of each user id.
        needs: Number of needs.
        need_share: Share of purchases that serve the user's need.
    """

    item_ids: list[str]
    need_of_item: np.ndarray
    within: np.ndarray
    need_of_user: dict[str, int]
    needs: int
    need_share: float

    def chances(self, need: int | None) -> np.ndarray:
        """Probability that a user with this need, or with an unknown one, buys each item next."""
        any_need = 1 / self.needs
        if need is None:
            return np.asarray(any_need * self.within)
        return (self.need_share * (self.need_of_item == need) + (1 - self.need_share) * any_need) * self.within


@dataclass(frozen=True)
class _World:
    """The items and users of a synthetic world.

    Attributes:
        lexicon: Words of the vertical.
        words: Traits of each item.
        item_ids: Id of each item.
        items: The table of items.
        needs_of: Need of each user.
        user_ids: Id of each user.
    """

    lexicon: Lexicon
    words: list[dict[str, str]]
    item_ids: list[str]
    items: pl.DataFrame
    needs_of: np.ndarray
    user_ids: list[str]


@dataclass(frozen=True, kw_only=True)
class SyntheticSource(TablesSource):
    """Generates a synthetic world. The same settings give the same data.

    Args:
        vertical: Selects the words, `office` or `clothing`.
        users: Number of users.
        narrated_users: Number of users with narratives of all six features.
        items: Number of items.
        needs: Number of hidden needs.
        purchases: Mean number of purchases per user. The numbers range from half to one and a half of it.
        need_share: Share of purchases that serve the user's need. The others are any item.
        seed: Random seed.

    Raises:
        ValueError: If a size is out of range or the vertical is unknown.
    """

    vertical: str
    users: int
    narrated_users: int
    items: int
    needs: int
    purchases: int
    need_share: float
    seed: int

    def __post_init__(self) -> None:
        available = len(Lexicon.load(self.vertical).needs)
        if not 1 <= self.narrated_users <= self.users:
            raise ValueError(f"source.narrated_users={self.narrated_users} has to be 1 to source.users={self.users}.")
        if not 1 <= self.needs <= available:
            raise ValueError(f"source.needs={self.needs} has to be 1 to {available}, as many as the lexicon has.")
        if self.items < self.needs:
            raise ValueError(f"source.items={self.items} has to be at least source.needs={self.needs}.")
        if self.purchases < 1:
            raise ValueError(f"source.purchases={self.purchases} has to be at least 1.")
        if not 0 <= self.need_share <= 1:
            raise ValueError(f"source.need_share={self.need_share} has to be 0 to 1.")

    def files(self) -> dict[str, Path]:
        """The lexicon of the vertical."""
        return {"lexicon": LEXICON / f"{self.vertical}.yaml"}

    def read(self) -> tuple[Tables, dict[str, int]]:
        """The generated tables; nothing is dropped, so there are no counts."""
        rng = np.random.default_rng(self.seed)
        world = self._world(rng)
        interactions = self._interactions(rng, world, self._purchases(rng, world.needs_of))
        narratives, planted = self._narratives(rng, world, interactions)
        return Tables(world.items, interactions, narratives, planted), {}

    def truth(self) -> Truth:
        """The true purchase probabilities, which are in no table."""
        world = self._world(np.random.default_rng(self.seed))
        rank, need = np.divmod(np.arange(self.items), self.needs)
        pool = (self.items - 1 - need) // self.needs + 1
        within = ((rank + 1) / pool) ** (1 / SKEW) - (rank / pool) ** (1 / SKEW)
        need_of_user = dict(zip(world.user_ids, world.needs_of.tolist(), strict=True))
        return Truth(world.item_ids, need, within, need_of_user, self.needs, self.need_share)

    def _world(self, rng: np.random.Generator) -> _World:
        """Items and users, which are drawn before everything else."""
        lexicon = Lexicon.load(self.vertical)
        words = [
            {name: lexicon.traits[name][value] for name, value in zip(TRAITS, row, strict=True)}
            for row in zip(*(rng.integers(len(lexicon.traits[name]), size=self.items) for name in TRAITS), strict=True)
        ]
        item_ids = [f"i{number:07d}" for number in rng.permutation(self.items)]
        items = self._items(rng, lexicon, words, item_ids)
        needs_of = rng.integers(self.needs, size=self.users)
        user_ids = [f"u{number:08d}" for number in rng.permutation(self.users)]
        return _World(lexicon, words, item_ids, items, needs_of, user_ids)

    def _items(
        self, rng: np.random.Generator, lexicon: Lexicon, words: list[dict[str, str]], item_ids: list[str]
    ) -> pl.DataFrame:
        bounds = np.array([lexicon.prices[row["price_band"]] for row in words])
        return pl.DataFrame(
            {
                "item_id": item_ids,
                "title": [f"{row['brand']} {row['category']}, {row['colour']}" for row in words],
                "description": filled(DESCRIPTIONS, words, rng),
                "category": [row["category"] for row in words],
                "price": np.round(rng.uniform(bounds[:, 0], bounds[:, 1]), 2),
                "brand": [row["brand"] for row in words],
            }
        )

    def _purchases(self, rng: np.random.Generator, needs_of: np.ndarray) -> pl.DataFrame:
        """Columns `user`, `item` (numbers) and `timestamp`. An item serves the need `item % needs`."""
        low, high = (self.purchases + 1) // 2, self.purchases + self.purchases // 2
        counts = rng.integers(low, high + 1, size=len(needs_of))
        user = np.repeat(np.arange(len(needs_of)), counts)
        served = rng.random(len(user)) < self.need_share
        need = np.where(served, needs_of[user], rng.integers(self.needs, size=len(user)))
        pool = (self.items - 1 - need) // self.needs + 1
        rank = np.floor(pool * rng.random(len(user)) ** SKEW).astype(np.int64)
        gaps = rng.choice(
            [0, 3, 11, 40], size=len(user), p=[0.2, 0.3, 0.3, 0.2]
        )  # days; 0 gives several purchases on one day
        order = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
        total = np.cumsum(gaps)
        since_first = total - np.repeat(total[order == 0], counts)
        first = FIRST_DAY + rng.integers(365, size=len(needs_of))
        frame = pl.DataFrame(
            {"user": user, "item": rank * self.needs + need, "timestamp": (first[user] + since_first) * DAY}
        )
        return frame.unique(["user", "item"], keep="first", maintain_order=True)

    def _interactions(self, rng: np.random.Generator, world: _World, bought: pl.DataFrame) -> pl.DataFrame:
        ratings = rng.choice(np.arange(1.0, 6.0), size=len(bought), p=RATINGS)
        said = [world.words[item] for item in bought["item"]]
        praise, blame = filled(PRAISE, said, rng), filled(BLAME, said, rng)
        titles = rng.choice(np.array(REVIEW_TITLES), size=len(bought))
        return sort_interactions(
            pl.DataFrame(
                {
                    "user_id": pl.Series(world.user_ids, dtype=pl.String).gather(bought["user"]),
                    "item_id": pl.Series(world.item_ids, dtype=pl.String).gather(bought["item"]),
                    "timestamp": bought["timestamp"].cast(pl.Int64),
                    "rating": ratings,
                    "review_title": titles.tolist(),
                    "review_text": [
                        good if r > 2 else bad for good, bad, r in zip(praise, blame, ratings, strict=True)
                    ],
                }
            )
        )

    def _narratives(
        self, rng: np.random.Generator, world: _World, interactions: pl.DataFrame
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        lexicon = world.lexicon
        chosen = {world.user_ids[user]: user for user in rng.choice(self.users, self.narrated_users, replace=False)}
        latest = (
            interactions.filter(pl.col("user_id").is_in(list(chosen)))
            .group_by("user_id", maintain_order=True)
            .agg(pl.col("item_id", "timestamp").last())
        )
        number_of = {item: number for number, item in enumerate(world.item_ids)}
        needs = list(lexicon.needs)
        truth = [
            {**world.words[number_of[item]], "need": needs[world.needs_of[chosen[user]]]}
            for user, item in latest.select("user_id", "item_id").iter_rows()
        ]
        parts = []
        for feature, templates in NARRATIVES.items():
            said = [{**row, "need": str(rng.choice(lexicon.needs[row["need"]]))} for row in truth]
            about_item = pl.lit(feature in ITEM_FEATURES)
            parts.append(
                latest.select(
                    "user_id",
                    pl.lit(feature).alias("feature"),
                    *(pl.when(about_item).then(pl.col(name)).alias(name) for name in ("item_id", "timestamp")),
                    pl.Series("text", filled(templates, said, rng)),
                )
            )
        planted = [
            {"user_id": user, "label": label, "value": row[label], "forms": lexicon.forms(label)[row[label]]}
            for user, row in zip(latest["user_id"], truth, strict=True)
            for label in ("need", *TRAITS)
        ]
        return pl.concat(parts), pl.DataFrame(planted, schema=PLANTED)
