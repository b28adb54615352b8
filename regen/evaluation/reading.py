"""Sentences that say what a block of a table shows, made from its numbers."""

import math

from regen.evaluation.comparison_blocks import CLOSED_FORM, SHUFFLED, Block, Column
from regen.evaluation.statistics import MARGIN, Estimate
from regen.evaluation.text_metrics import Metric

MOST = 3  # differences named in one sentence


def reading(block: Block) -> list[str]:
    """At most three sentences: the order of the models, their differences, and whether the model reads its input.

    They are about the planted signals, or about the headline metric if nothing is planted. A block without a finished
    model has none.
    """
    focus = [metric for metric in block.rows if metric.is_planted] or [m for m in (block.headline,) if m]
    focus = [metric for metric in focus if _ranked(block, metric)]
    sentences = [_order(block, focus), _differences(block, focus), _reads(block, focus), _adds(block, focus)]
    return [sentence for sentence in sentences if sentence]


def _ranked(block: Block, metric: Metric) -> list[tuple[str, float]]:
    """Models with a value, the best one first."""
    return sorted(block.model_values(metric).items(), key=lambda pair: -pair[1])


def _order(block: Block, focus: list[Metric]) -> str:
    parts = [
        f"{metric.display}: " + ", ".join(f"{name} {value:.{metric.decimals}f}" for name, value in ranked)
        for metric in focus
        if (ranked := _ranked(block, metric))
    ]
    return f"{'; '.join(parts)}." if parts else ""


def _differences(block: Block, focus: list[Metric]) -> str:
    """The differences between models: of the joint encoder from the better one where there is such a column."""
    between = [c for c in block.columns if c.kind == "difference" and not c.name.endswith((SHUFFLED, CLOSED_FORM))]
    columns = [column for column in between if column.beside] or between[:MOST]
    parts = [text for column in columns for metric in focus if (text := _difference(column, metric))]
    return f"{'; '.join(parts)}." if parts else ""


def _difference(column: Column, metric: Metric) -> str:
    """For instance "both is 0.7 pp below cf in need recovery (not worse by more than 5 pp)"."""
    estimate = column.estimate(metric)
    if not isinstance(estimate, Estimate) or math.isnan(estimate.low):
        return ""
    subject, _, baseline = column.name.partition(" vs ")
    unit = "pp" if metric.is_share else "%"
    way = "above" if estimate.value >= 0 else "below"
    text = f"{subject} is {abs(estimate.value):.1f} {unit} {way} {column.beside.get(metric.name, baseline)}"
    verdicts = {
        "not worse": f"not worse by more than {MARGIN:g} pp",
        "worse": f"worse by more than {MARGIN:g} pp",
        "open": f"it is open whether it is worse by more than {MARGIN:g} pp",
    }
    said = verdicts[estimate.verdict()] if metric.is_planted and column.verdicts else _certainty(column, metric)
    return f"{text} in {_inside(metric)} ({said})"


def _certainty(column: Column, metric: Metric) -> str:
    """How sure a difference is."""
    estimate = column.estimate(metric)
    assert isinstance(estimate, Estimate)
    if column.holds(metric):
        return "holds after the correction"
    return "apart from zero, but no claim" if estimate.excludes_zero else "not apart from zero"


def _reads(block: Block, focus: list[Metric]) -> str:
    """Whether texts fit their own users better than other users."""
    floors = {column.name: column for column in block.columns if column.kind == "floor"}
    difference = next((column for column in block.columns if column.name.endswith(f" vs {SHUFFLED}")), None)
    if difference is None or SHUFFLED not in floors:
        return ""
    values, shown = [], []
    for metric in focus:
        floor, lead = floors[SHUFFLED].estimate(metric), difference.estimate(metric)
        if isinstance(floor, Estimate) and isinstance(lead, Estimate) and not math.isnan(floor.value):
            values.append(f"{floor.value:.{metric.decimals}f} in {_inside(metric)}")
            shown += [_inside(metric)] if lead.low > 0 else []
    if not values:
        return ""
    subject = difference.name.removesuffix(f" vs {SHUFFLED}")
    reads = f"in {' and '.join(shown)} they depend on the history" if shown else "no dependence on the history is shown"
    return f"Paired with other users, the texts of {subject} reach {' and '.join(values)}; {reads}."


def _adds(block: Block, focus: list[Metric]) -> str:
    """Whether the LM of a recommender adds to its closed form."""
    columns = [column for column in block.columns if column.name.endswith(f" vs {CLOSED_FORM}")]
    parts = [text for column in columns for metric in focus if (text := _difference(column, metric))]
    return f"{'; '.join(parts)}." if parts else ""


def _inside(metric: Metric) -> str:
    """A metric's name within a sentence."""
    name = metric.display
    return name[0].lower() + name[1:] if name[1:2].islower() and "@" not in name else name
