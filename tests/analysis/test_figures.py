"""Every figure has labelled axes with a unit, shows what it is given, and can be told apart in grey."""

import io
import re

import numpy as np
import polars as pl
import pytest
import torch
from matplotlib.colors import to_rgb

from regen.analysis import figures
from regen.analysis.data_figures import rating_shares
from regen.analysis.popularity import share_by_popularity
from regen.analysis.projections import embed_in_plane

RNG = np.random.default_rng(0)
SHARES = {"norm share": torch.rand(50), "attribution": torch.tensor([0.2, float("nan")])}
RATINGS = pl.DataFrame(
    {
        "feature": ["purchase_reason"] * 6 + ["user_profile"] * 3,
        "attribute": ["veracity", "clarity", "foresight"] * 3,
        "score": [7, 6, 2, 7, 5, 3, 4, 4, 1],
    }
)
INTERACTIONS = pl.DataFrame({"item_id": [f"i{at % 20}" for at in range(50)], "popularity": RNG.integers(0, 80, 50)})
POPULARITY = share_by_popularity(torch.rand(50), INTERACTIONS)
GROUPS = {name: RNG.normal(size=(20, 6)) for name in ("soft tokens", "CF parts", "content parts", "LM tokens")}

FIGURES = {
    "interaction_counts": lambda: figures.interaction_counts(
        pl.DataFrame({"items": RNG.integers(1, 20, 100)}), pl.DataFrame({"users": RNG.integers(1, 5000, 100)})
    ),
    "narrative_lengths": lambda: figures.narrative_lengths(
        pl.DataFrame({"feature": ["a", "a", "b"], "words": [3, 5, 9]})
    ),
    "ratings": lambda: figures.ratings(rating_shares(RATINGS)),
    "share_distribution": lambda: figures.share_distribution(SHARES),
    "part_norms": lambda: figures.part_norms({"CF part": torch.rand(9), "content part": torch.rand(9)}),
    "share_by_popularity": lambda: figures.share_by_popularity({"norm share": POPULARITY, "attribution": POPULARITY}),
    "singular_values": lambda: figures.singular_values({"CF": torch.rand(9), "content": torch.rand(20)}),
    "principal_angles": lambda: figures.principal_angles({"CF and content": RNG.random(8), "random": RNG.random(8)}),
    "part_cosines": lambda: figures.part_cosines({"from zero": torch.rand(9), "centred": torch.rand(9)}, lm_dim=64),
    "planes": lambda: figures.planes(*(embed_in_plane(GROUPS, method=method) for method in ("tsne", "pca"))),
}


@pytest.fixture(params=FIGURES)
def figure(request):
    return FIGURES[request.param]()


def test_every_public_function_is_drawn_here():
    drawn = {name for name, it in vars(figures).items() if getattr(it, "__module__", "") == figures.__name__}
    assert {name for name in drawn if not name.startswith("_")} == set(FIGURES)


def test_every_axis_has_a_label_with_a_unit(figure):
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert axes
    for axis in axes:
        shares_x = axis.get_shared_x_axes().get_siblings(axis)
        x_labels = [other.get_xlabel() for other in shares_x]
        assert any(re.search(r"\(.+\)", label, re.DOTALL) for label in x_labels), x_labels
        assert re.search(r"\(.+\)", axis.get_ylabel(), re.DOTALL), axis.get_ylabel()


def test_every_figure_can_be_saved(figure):
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=50)
    assert picture.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name", ["share_distribution", "part_norms", "share_by_popularity", "singular_values", "principal_angles"]
)
def test_lines_of_a_figure_differ_in_more_than_colour(name):
    axis = FIGURES[name]().axes[0]
    handles, labels = axis.get_legend_handles_labels()
    lines = [
        handle[0] if isinstance(handle, tuple) else handle
        for handle, label in zip(handles, labels, strict=True)
        if label != "equal parts"
    ]
    assert len({line.get_linestyle() for line in lines}) == len(lines) == 2


def test_groups_of_a_plane_differ_in_more_than_colour():
    handles, labels = FIGURES["planes"]().axes[0].get_legend_handles_labels()
    looks = {(handle.get_paths()[0].vertices.tobytes(), float(handle.get_sizes()[0])) for handle in handles}
    assert len(looks) == len(labels) == 4
    assert any(label == "LM tokens (20 of 20)" for label in labels)


def test_scores_go_from_light_to_dark():
    bars = FIGURES["ratings"]().axes[0].containers
    luminance = [float(np.dot(to_rgb(bar[0].get_facecolor()), (0.299, 0.587, 0.114))) for bar in bars]
    assert luminance == sorted(luminance, reverse=True)
    assert luminance[0] - luminance[-1] > 0.3


def test_bars_add_up():
    for axis in FIGURES["interaction_counts"]().axes:
        assert sum(bar.get_height() for bar in axis.patches) == pytest.approx(100)
    ends = [bars[0].get_x() + bars[0].get_width() for bars in FIGURES["ratings"]().axes[0].containers]
    assert ends[-1] == pytest.approx(1)


def test_popularity_shows_medians_at_their_buckets():
    axis = figures.share_by_popularity({"norm share": POPULARITY}).axes[0]
    line = axis.containers[0][0]
    assert line.get_xdata().tolist() == list(range(len(POPULARITY)))
    assert line.get_ydata().tolist() == POPULARITY["median"].to_list()


def test_a_share_that_is_nowhere_defined_is_said_so():
    axis = figures.share_distribution({"norm share": torch.full((3,), float("nan"))}).axes[0]
    assert axis.get_legend_handles_labels()[1][0] == "norm share (undefined)"
