"""How cost grows with history length, batch, decoded rows, examples and items, as curves.

    python benchmarks/growth.py [figure=outputs/bench/growth.svg]

A training step and a decoding step are timed on equal rows after one that warms up; data and CF from an empty start.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from harness import FOLDER, arguments, config, ragged
from scipy import sparse

from regen.embeddings.cf import ALS
from regen.generation.row_decoder import RowDecoder
from regen.runtime.packed_weights import packed_weights

Curve = tuple[list[int], list[float]]
NARRATIVE = 64  # tokens
COLOURS, MARKERS = ("#0072B2", "#D55E00"), ("o", "s")  # two that the colour-blind tell apart, and shapes for print


def curve(sizes: Sequence[int], cost: Callable[[int], float]) -> Curve:
    """The cost at each size."""
    costs = []
    for size in sizes:
        costs.append(cost(size))
        print(f"{size:>8} {costs[-1]:.4g}", flush=True)
    return list(sizes), costs


def seconds(work: Callable[[], object], *, times: int = 1) -> float:
    """Of one call, the mean of several."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def training_step(batch: int, *, history: int = 8, encoder: str = "both") -> float:
    """Milliseconds of forward and backward for each example."""
    world = ragged(batch, f"encoder={encoder}", history=history, narrative=NARRATIVE)
    model, rows = world.model().train(), world.dataset.collate(range(batch))

    def step() -> None:
        loss, _ = model(rows)
        loss.backward()

    with packed_weights(model.lm, backward=True):
        step()
        return 1000 * seconds(step) / batch


def decoding_step(rows: int) -> float:
    """Milliseconds of a decoded token."""
    world = ragged(rows, "encoder=both", history=8, narrative=NARRATIVE)
    model = world.model().eval()
    decoder = RowDecoder(model, slots=rows, length=NARRATIVE + 64, stop_ids=())
    with packed_weights(model.lm, backward=False):
        decoder.add(world.dataset.collate(range(rows)), range(rows), [NARRATIVE] * rows)
        decoder.step()
        return 1000 * seconds(decoder.step, times=3) / rows


def dataset(examples: int) -> float:
    """Seconds to tokenise examples and to lay out an epoch of batches."""
    return seconds(lambda: list(ragged(examples, "lm=tiny").datamodule().train_dataloader().batches))


def als(items: int) -> float:
    """Seconds to fit CF with ten interactions an item."""
    rng = np.random.default_rng(0)
    users, interactions = 2 * items, 10 * items
    at = rng.integers(users, size=interactions), rng.integers(items, size=interactions)
    confidence = sparse.csr_matrix((np.ones(interactions, dtype=np.float32), at), shape=(users, items))
    options = config().cf.model
    model = ALS(**{str(name): value for name, value in options.items() if name != "_target_"})
    return seconds(lambda: model.fit_items(confidence))


def draw(panels: dict[tuple[str, str], dict[str, Curve]], figure: Path) -> None:
    """One panel for each pair of axis titles, both axes logarithmic; the slope of each curve in its legend."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    drawn, axes = pyplot.subplots(2, 3, figsize=(10, 6), constrained_layout=True)
    for axis, ((size, cost), curves) in zip(axes.flat, panels.items(), strict=False):
        for (name, (sizes, costs)), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
            slope = np.polyfit(np.log(sizes), np.log(costs), 1)[0]
            axis.plot(sizes, costs, color=colour, marker=marker, label=f"{name} (slope {slope:.2f})")
        axis.set(xscale="log", yscale="log", xlabel=size, ylabel=cost)
        ticks = sorted({at for sizes, _ in curves.values() for at in sizes})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
        axis.margins(y=0.25)
        axis.legend(frameon=False, fontsize=8, loc="upper left")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    figure.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(figure)


def main(figure: str) -> None:
    torch.manual_seed(0)
    panels = {
        ("interactions in the history", "training, ms an example"): {
            "soft tokens": curve((2, 8, 16, 32, 50), lambda size: training_step(4, history=size)),
            "encoder=text": curve((2, 4, 8), lambda size: training_step(1, history=size, encoder="text")),
        },
        ("examples in a batch", "training, ms an example"): {"soft tokens": curve((1, 2, 4, 8, 16), training_step)},
        ("rows decoded at once", "ms a token"): {"greedy": curve((1, 8, 32, 128), decoding_step)},
        ("examples", "tokens and batches, s"): {"data": curve((1_000, 4_000, 16_000), dataset)},
        ("items", "CF (ALS), s"): {"ten interactions an item": curve((2_000, 8_000, 32_000), als)},
    }
    draw(panels, Path(figure))
    print(figure)


if __name__ == "__main__":
    main(**arguments(sys.argv[1:], figure=str(FOLDER / "growth.svg")))
