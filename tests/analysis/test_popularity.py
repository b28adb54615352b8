"""CF's share by popularity: buckets, medians, and intervals over items."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from regen.analysis.adapter_weights import cf_shares
from regen.analysis.popularity import share_by_popularity, share_overall


def bought(popularity, items=None):
    return pl.DataFrame({"item_id": items or [f"i{at}" for at in range(len(popularity))], "popularity": popularity})


def test_buckets_partition_the_sample(sample):
    share = torch.nan_to_num(cf_shares(sample)["attribution"])
    table = share_by_popularity(share, sample.interactions)
    overall = share_overall(share, sample.interactions)
    assert table["interactions"].sum() == len(share) == overall["interactions"][0]
    assert table["items"].sum() == sample.interactions["item_id"].n_unique() == overall["items"][0]
    weighted = (table["mean"] * table["interactions"]).sum() / len(share)
    assert weighted == pytest.approx(float(share.mean()), abs=1e-6)
    assert weighted == pytest.approx(overall["mean"][0], abs=1e-6)


def test_buckets_by_hand():
    share, popularity = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, math.nan]), [0, 1, 4, 5, 700, 700]
    table = share_by_popularity(share, bought(popularity))
    assert table["bucket"].to_list() == ["0", "1-4", "5-9", "50+"]
    assert table["interactions"].to_list() == table["items"].to_list() == [1, 2, 1, 1]
    assert table["median"].to_list() == pytest.approx([0.0, 0.15, 0.3, 0.4])
    assert table["low"].to_list() == pytest.approx([0.0, 0.1, 0.3, 0.4])
    assert table["high"].to_list() == pytest.approx([0.0, 0.2, 0.3, 0.4])


def test_a_bucket_whose_shares_are_undefined_has_no_interval():
    table = share_overall(torch.full((3,), math.nan), bought([1, 2, 3]))
    assert table.select("interactions", "median", "low", "high").row(0) == (0, None, None, None)


def test_items_are_resampled_and_not_their_interactions():
    """A hundred interactions with four items say no more than four."""
    share = torch.tensor([0.1, 0.3, 0.5, 0.9]).repeat_interleave(25)
    four = share_overall(share, bought([7] * 100, [f"i{at // 25}" for at in range(100)]))
    hundred = share_overall(share, bought([7] * 100))
    assert four["median"][0] == hundred["median"][0] == pytest.approx(0.4)
    assert four["high"][0] - four["low"][0] > 2 * (hundred["high"][0] - hundred["low"][0])


def test_the_interval_covers_the_median_of_the_population():
    """Items of a uniform share, three interactions each: 95 % intervals hold 0.5 nearly as often."""
    rng = np.random.default_rng(0)
    items = [f"i{at // 3}" for at in range(180)]
    held = 0
    for seed in range(100):
        share = torch.from_numpy(np.repeat(rng.random(60), 3))
        table = share_overall(share, bought([7] * 180, items), resamples=200, seed=seed)
        held += table["low"][0] <= 0.5 <= table["high"][0]
    assert 88 <= held <= 100


def test_a_seed_gives_the_same_interval():
    share, rows = torch.rand(40), bought([3] * 40)
    one, again, other = (share_overall(share, rows, resamples=100, seed=seed) for seed in (0, 0, 1))
    assert one.equals(again)
    assert not one.equals(other)
