"""The k-core against a loop that removes one user or item at a time."""

import random
from collections import Counter

import polars as pl
import pytest

from regen.data.core import in_core
from regen.data.tables import INTERACTIONS


def by_hand(pairs, core):
    left = set(pairs)
    while True:
        users, items = (Counter(pair[at] for pair in left) for at in (0, 1))
        weak = [(user, item) for user, item in left if users[user] < core or items[item] < core]
        if not weak:
            return left
        left.discard(weak[0])


def parts_of(pairs, count):
    """Rows sorted by user, in parts of whole users."""
    users = sorted({user for user, _ in pairs})
    empty = dict.fromkeys(INTERACTIONS.names()[2:])
    for at in range(count):
        mine = set(users[at::count]) if count > 1 else set(users)
        rows = [{"user_id": user, "item_id": item, **empty} for user, item in sorted(pairs) if user in mine]
        yield pl.DataFrame(rows, schema=INTERACTIONS)


@pytest.mark.parametrize("parts", [1, 3, 40])
@pytest.mark.parametrize("core", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_that_of_the_plain_loop(tmp_path, seed, core, parts):
    chance = random.Random(seed)
    pairs = [(f"u{chance.randrange(30):02}", f"b{int(12 * chance.random() ** 2)}") for _ in range(120)]
    counts = {}
    items = pl.Series([f"b{at}" for at in range(12)])
    left = pl.concat(in_core(parts_of(pairs, parts), items, core, tmp_path, counts))
    kept = by_hand(pairs, core)
    assert sorted(left.select("user_id", "item_id").rows()) == sorted(pair for pair in pairs if pair in kept)
    assert counts == {f"interactions.dropped.outside_the_{core}_core": len(pairs) - len(left)}
    assert left.schema == INTERACTIONS
    assert list(tmp_path.iterdir()) == []


def test_nothing_may_be_left(tmp_path):
    counts = {}
    assert list(in_core(iter([INTERACTIONS.to_frame()]), pl.Series([], dtype=pl.String), 5, tmp_path, counts)) == []
    assert counts == {"interactions.dropped.outside_the_5_core": 0}
