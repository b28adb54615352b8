"""Points in a plane: which were drawn, and that methods keep what they promise."""

import numpy as np
import pytest

from regen.analysis.projections import embed_in_plane, embedding_groups


@pytest.fixture
def apart():
    """Two tight groups far from each other in ten dimensions."""
    rng = np.random.default_rng(0)
    return {"near": rng.normal(size=(60, 10)), "far": rng.normal(size=(30, 10)) + 50}


def test_groups_of_a_run(sample):
    groups = embedding_groups(sample)
    parts = ["CF parts", "content parts"] if sample.run.config.adapter.name == "linear" else []
    assert list(groups) == ["soft tokens", *parts, "LM tokens"]
    assert {vectors.shape[1] for vectors in groups.values()} == {32}


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_sizes_and_seed_come_with_the_coordinates(apart, method):
    plane = embed_in_plane(apart, method=method, most=40, seed=3)
    assert plane.sizes == {"near": 40, "far": 30}
    assert plane.available == {"near": 60, "far": 30}
    assert plane.seed == 3
    assert plane.points["group"].to_list() == ["near"] * 40 + ["far"] * 30
    assert np.isfinite(plane.points.select("x", "y").to_numpy()).all()


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_a_seed_gives_the_same_plane_and_another_seed_another(apart, method):
    planes = [embed_in_plane(apart, method=method, most=40, seed=seed).points for seed in (0, 0, 1)]
    assert planes[0].equals(planes[1])
    assert not planes[0].equals(planes[2])


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_groups_that_are_apart_stay_apart(apart, method):
    points = embed_in_plane(apart, method=method).points
    near, far = (points.filter(group=name).select("x", "y").to_numpy() for name in ("near", "far"))
    between = np.linalg.norm(near[:, None] - far[None], axis=2)
    within = np.linalg.norm(near[:, None] - near[None], axis=2)
    assert between.min() > np.median(within)


def test_pca_explains_what_it_keeps(apart):
    flat = {"line": np.outer(np.arange(20.0), np.ones(4))}
    assert embed_in_plane(flat, method="pca").explained == pytest.approx((1, 0), abs=1e-9)
    first, second = embed_in_plane(apart, method="pca").explained
    assert 0 < second < first < 1


def test_perplexity_fits_few_points(apart):
    assert embed_in_plane(apart, method="tsne").perplexity == 30
    assert embed_in_plane(apart, method="tsne", most=6).perplexity == 4
