"""One function per figure: takes computed values and returns a matplotlib figure.

The palette suits any colour vision. Markers and line styles differ too, so a grey print can be read.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import seaborn  # type: ignore[import-untyped]
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from torch import Tensor

from regen.analysis.data_figures import SCORES
from regen.analysis.projections import Embedded

PALETTE: list[tuple[float, float, float]] = seaborn.color_palette("colorblind")
CF, CONTENT, SOFT, CHANCE = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[7]
LOOKS = {  # colour, marker, size; the last one is drawn on top
    "soft tokens": (SOFT, "o", 22),
    "CF parts": (CF, "^", 22),
    "content parts": (CONTENT, "x", 18),
    "LM tokens": ("black", ".", 6),
}
Values = Float[Tensor, " sample"] | Float[np.ndarray, " sample"]


def interaction_counts(items_per_user: pl.DataFrame, users_per_item: pl.DataFrame) -> Figure:
    """Histograms of items per user and users per item (paper, Figure 7).

    Args:
        items_per_user: Has a column `items`.
        users_per_item: Has a column `users`.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _count_histogram(left, items_per_user["items"].to_numpy(), color=CF)
    left.set(xlabel="items of a user (count)", ylabel=f"share of {len(items_per_user):,} users (%)")
    _count_histogram(right, users_per_item["users"].to_numpy(), color=CONTENT)
    right.set(xlabel="users of an item (count)", ylabel=f"share of {len(users_per_item):,} items (%)")
    return figure


def narrative_lengths(lengths: pl.DataFrame) -> Figure:
    """Box plots of the length of narratives by feature; whiskers reach from the 5th to the 95th percentile.

    Args:
        lengths: Columns `feature`, `words`.
    """
    features = lengths["feature"].unique(maintain_order=True).to_list()
    words = [lengths.filter(feature=feature)["words"].to_numpy() for feature in features]
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(features)), layout="constrained")
    axis = figure.subplots()
    axis.boxplot(
        words,
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        widths=0.6,
        patch_artist=True,
        boxprops={"facecolor": seaborn.light_palette(CF, 4)[1]},
        medianprops={"color": "black", "linewidth": 2},
        tick_labels=[f"{feature} (n = {len(of):,})" for feature, of in zip(features, words, strict=True)],
    )
    axis.invert_yaxis()
    axis.set(xlabel="length of a narrative (words)", ylabel="output feature (n narratives)", xlim=(0, None))
    axis.grid(axis="x", alpha=0.3)
    return figure


def ratings(shares: pl.DataFrame) -> Figure:
    """Distribution of the rater's scores, with a panel per feature and a bar per attribute (paper, Figures 1 to 3).

    Args:
        shares: Columns `feature`, `attribute`, `score`, `ratings`, `share`, from `rating_shares`.
    """
    panels = shares.partition_by("feature", maintain_order=True)
    heights = [len(panel["attribute"].unique()) for panel in panels]
    figure = Figure(figsize=(8, 1.2 + 0.42 * sum(heights) + 0.5 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        _stacked_scores(axis, panel)
        axis.set(title=panel["feature"][0], ylabel="attribute\n(n ratings)", xlim=(0, 1))
    axes[-1].set_xlabel("share of ratings (%)")
    axes[-1].xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="score", loc="outside right center", reverse=True)
    return figure


def share_distribution(by_measure: Mapping[str, Values]) -> Figure:
    """Distribution of CF's share of the soft tokens, with a line per measure (paper 6.2, Figure 6).

    Args:
        by_measure: Shares of the sampled interactions by measure; nan is ignored.
    """
    figure, axis = _one_axis()
    for number, (name, values) in enumerate(by_measure.items()):
        known = _known(values)
        label = f"{name} (median {np.median(known):.2f}, n = {len(known):,})" if len(known) else f"{name} (undefined)"
        _line_histogram(axis, known, np.linspace(0, 1, 41), number, label)
    axis.axvline(0.5, color=CHANCE, linewidth=1, label="equal parts")
    axis.set(
        xlabel="CF's share of the soft token (0: content alone, 1: CF alone)", ylabel="interactions (%)", xlim=(0, 1)
    )
    _legend_above(axis)
    return figure


def part_norms(by_part: Mapping[str, Values]) -> Figure:
    """Distribution of the norms of projected parts and soft tokens (paper 6.2).

    Args:
        by_part: Norms of the sampled interactions by part.
    """
    figure, axis = _one_axis()
    known = {name: _known(values) for name, values in by_part.items()}
    edges = np.linspace(0, max(float(values.max(initial=0)) for values in known.values()) or 1, 41)
    for number, (name, values) in enumerate(known.items()):
        _line_histogram(axis, values, edges, number, f"{name} (median {np.median(values):.2f})")
    axis.set(xlabel="L2 norm (LM embedding units)", ylabel="interactions (%)", xlim=(0, None))
    _legend_above(axis)
    return figure


def share_by_popularity(by_measure: Mapping[str, pl.DataFrame]) -> Figure:
    """CF's share by the item's popularity: medians with 95 % intervals and bands of the middle 80 % (paper 6.2).

    Args:
        by_measure: Results of `popularity.share_by_popularity` by measure of the share.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    first = next(iter(by_measure.values()))
    places = np.arange(len(first))
    for number, (name, table) in enumerate(by_measure.items()):
        middle, low, high = (table[of].to_numpy() for of in ("median", "low", "high"))
        at = places + 0.18 * (number - (len(by_measure) - 1) / 2)
        axis.vlines(at, table["q10"], table["q90"], color=PALETTE[number], alpha=0.3, linewidth=7)
        interval = np.stack([middle - low, high - middle])
        axis.errorbar(at, middle, interval, color=PALETTE[number], label=name, capsize=4, **_line(number))
    names = zip(*(first[of] for of in ("bucket", "items", "interactions")), strict=True)
    axis.set_xticks(places, [f"{bucket}\n{items:,} items\nn = {n:,}" for bucket, items, n in names])
    axis.set(
        xlabel="popularity of the item (training interactions; n sampled ones)",
        ylabel="CF's share of the soft token\n(0 to 1)",
        ylim=(-0.03, 1.03),
    )
    axis.grid(axis="y", alpha=0.3)
    axis.legend(
        title="median; caps: its 95 % interval over items; band: middle 80 % of interactions",
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        frameon=False,
        ncols=len(by_measure),
    )
    return figure


def singular_values(by_block: Mapping[str, Float[Tensor, " _"]]) -> Figure:
    """Singular values of the projection's blocks, down to 1/10,000 of the largest (paper 6).

    Args:
        by_block: Singular values by block, largest first.
    """
    figure, axis = _one_axis()
    for number, (name, values) in enumerate(by_block.items()):
        _ranked(axis, values.numpy(), number, f"{name} ({len(values)})")
    largest = max((float(values.max()) for values in by_block.values() if len(values)), default=1.0)
    axis.set(
        xlabel="rank of the direction (count)",
        ylabel="singular value\n(LM units per input unit)",
        yscale="log",
        ylim=(largest / 1e4, 2 * largest),
    )
    _legend_above(axis)
    return figure


def principal_angles(by_pair: Mapping[str, Float[np.ndarray, " _"]]) -> Figure:
    """Principal angles between the column spaces of blocks.

    Args:
        by_pair: Angles in degrees by pair of blocks, smallest first.
    """
    figure, axis = _one_axis()
    for number, (name, angles) in enumerate(by_pair.items()):
        _ranked(axis, angles, number, name)
    axis.set(xlabel="rank of the angle (count)", ylabel="principal angle (degrees)", ylim=(-3, 93))
    axis.set_yticks(range(0, 91, 15))
    axis.grid(axis="y", alpha=0.3)
    _legend_above(axis)
    return figure


def part_cosines(by_parts: Mapping[str, Values], *, lm_dim: int) -> Figure:
    """Distribution of the cosine between projected CF and content parts, with a band for 95 % of random directions.

    Args:
        by_parts: Cosines of the sampled interactions by kind of parts; nan is ignored.
        lm_dim: Width of the LM, which determines the band.
    """
    figure, axis = _one_axis()
    for number, (name, values) in enumerate(by_parts.items()):
        _line_histogram(axis, _known(values), np.linspace(-1, 1, 61), number, name)
    chance = 1.96 / lm_dim**0.5
    axis.axvspan(-chance, chance, color=CHANCE, alpha=0.3, label=f"95 % of random directions (±{chance:.2f})")
    axis.set(xlabel="cosine of CF part and content part (-1 to 1)", ylabel="interactions (%)", xlim=(-1, 1))
    _legend_above(axis)
    return figure


def planes(*embedded: Embedded) -> Figure:
    """Soft tokens, their parts and LM tokens in a plane, with a panel per method (paper 6.1, Figures 5 and 8).

    Args:
        embedded: Results of `embed_in_plane`.
    """
    figure = Figure(figsize=(5.2 * len(embedded), 5.2), layout="constrained")
    axes = figure.subplots(1, len(embedded), squeeze=False)[0]
    for axis, plane in zip(axes, embedded, strict=True):
        for name in plane.sizes:
            label = f"{name} ({plane.sizes[name]:,} of {plane.available[name]:,})"
            _scatter(axis, plane.points.filter(group=name), name, label)
        _name_axes(axis, plane)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(labels)), markerscale=1.5)
    return figure


def _one_axis() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    return figure, figure.subplots()


def _count_histogram(axis: Axes, counts: Shaped[np.ndarray, " _"], *, color: tuple[float, float, float]) -> None:
    """A bar per count, or logarithmic bins if counts range widely."""
    least, most = int(counts.min()), int(counts.max())
    wide = most > 100
    if wide:  # narrower bins than a factor of 1.3 would alternate between one and two whole numbers
        bins = max(8, round(math.log(most / least) / math.log(1.3)))
        edges = np.unique(np.geomspace(least, most + 1, bins).astype(int)) - 0.5
    else:
        edges = np.arange(0.5, most + 1)
    axis.hist(
        counts, bins=edges.tolist(), weights=np.full(len(counts), 100 / len(counts)), color=color, edgecolor="white"
    )
    if wide:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    median = float(np.median(counts))
    axis.axvline(median, color="black", linestyle="--", label=f"median {median:g}")
    _legend_above(axis)


def _stacked_scores(axis: Axes, panel: pl.DataFrame) -> None:
    """A bar per attribute, divided by score from light to dark; parts that are wide enough show their score."""
    colours = seaborn.light_palette([0.5 * part for part in CF], len(SCORES) + 1)[1:]
    attributes = panel["attribute"].unique(maintain_order=True).to_list()
    counts = panel.group_by("attribute", maintain_order=True).agg(pl.col("ratings").sum())["ratings"]
    left = np.zeros(len(attributes))
    for score, colour in zip(SCORES, colours, strict=True):
        width = panel.filter(score=score)["share"].to_numpy()
        bars = axis.barh(attributes, width, left=left, color=colour, edgecolor="white", label=str(score))
        texts = [str(score) if share >= 0.04 else "" for share in width]
        axis.bar_label(bars, texts, label_type="center", color="black" if score < 4 else "white", fontsize=8)
        left += width
    axis.set_yticks(
        range(len(attributes)), [f"{name} ({count:,})" for name, count in zip(attributes, counts, strict=True)]
    )
    axis.invert_yaxis()


def _known(values: Values) -> Float[np.ndarray, " _"]:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def _line_histogram(
    axis: Axes, values: Float[np.ndarray, " _"], edges: Float[np.ndarray, " _"], number: int, label: str
) -> None:
    """The outline of a histogram, in percent of the values."""
    heights = np.histogram(values, edges)[0] * 100 / max(len(values), 1)
    style = _line(number)["linestyle"]
    axis.stairs(heights, edges, color=PALETTE[number], linestyle=style, linewidth=2, label=label)


def _ranked(axis: Axes, values: Float[np.ndarray, " _"], number: int, label: str) -> None:
    """A line over ranks with about ten markers."""
    ranks = np.arange(1, len(values) + 1)
    axis.plot(ranks, values, color=PALETTE[number], label=label, markevery=max(1, len(values) // 10), **_line(number))


def _line(number: int) -> dict[str, Any]:
    return {"linestyle": ("-", "--", "-.", ":")[number % 4], "marker": "os^D"[number % 4]}


def _scatter(axis: Axes, group: pl.DataFrame, name: str, label: str) -> None:
    colour, marker, size = LOOKS.get(name, (PALETTE[4], "s", 18))
    ink: dict[str, Any] = {"facecolors": "none", "edgecolors": colour} if marker in "o^s" else {"c": [colour]}
    axis.scatter(group["x"], group["y"], s=size, marker=marker, linewidths=0.7, alpha=0.8, label=label, **ink)


def _name_axes(axis: Axes, plane: Embedded) -> None:
    if plane.explained is None:
        axis.set(xlabel="t-SNE dimension 1 (no unit)", ylabel="t-SNE dimension 2 (no unit)")
        axis.set_title(f"t-SNE, perplexity {plane.perplexity:g}, seed {plane.seed}")
        return
    first, second = (f"{share:.0%} of the variance; LM embedding units" for share in plane.explained)
    axis.set(xlabel=f"first principal component\n({first})", ylabel=f"second principal component\n({second})")
    axis.set_title(f"PCA, seed {plane.seed}")


def _legend_above(axis: Axes) -> None:
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False, ncols=1)
