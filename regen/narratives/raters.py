"""Raters: language models that judge narratives, the attributes they judge and the scale."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, create_model

from regen.narratives.ask_shards import ask
from regen.narratives.endpoint import Endpoint
from regen.narratives.ledger import Ledger
from regen.narratives.prompts import HistoryLimits, Prompt, Request
from regen.narratives.report import Report, RunLimits, check_report
from regen.runtime.shards import Engine

LEVELS = ("very low", "low", "rather low", "medium", "rather high", "high", "very high")
"""The seven-point scale. A score is the position of a level, 1 to 7."""
Level = Literal["very low", "low", "rather low", "medium", "rather high", "high", "very high"]

CRITIQUE = "critique"
JUDGED = ("veracity", "grounding", "clarity", "foresight", "personalization")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "user_richness": ("user_richness",),
    "purchase_reason": JUDGED,
    "user_summary": tuple(name for name in JUDGED if name != "foresight"),
    "product_endorsement": JUDGED,
    CRITIQUE: ("veracity", "grounding", "clarity"),
}
"""Attributes to judge in each stage. Each stage is a separate request (paper 3.3)."""
JUDGED_FEATURES: dict[str, tuple[str, ...]] = {
    "user_richness": (),
    "purchase_reason": ("purchase_reason", "purchase_reason_explanation"),
    "user_summary": ("brief_user_summary", "long_user_summary", "user_profile"),
    "product_endorsement": ("product_endorsement",),
    CRITIQUE: (CRITIQUE,),
}


@functools.cache
def answer_model(stage: str) -> type[BaseModel]:
    """Schema of a judgement: a level per attribute and the confidence in it."""
    fields: dict[str, Any] = {}
    for attribute in ATTRIBUTES[stage]:
        fields[attribute] = (Level, ...)
        fields[f"{attribute}_confidence"] = (Level, ...)
    return create_model(f"Rate_{stage}", **fields)


def __getattr__(name: str) -> Any:
    """Finds `Rate_<stage>` by name, which pickling of requests needs."""
    stage = name.removeprefix("Rate_")
    if stage == name or stage not in ATTRIBUTES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return answer_model(stage)


@functools.cache
def prompt_of(stage: str) -> Prompt:
    """The prompt of a stage."""
    return Prompt(f"rate_{stage}", answer_model(stage))


@dataclass(frozen=True)
class Rater:
    """A language model that judges.

    Attributes:
        name: Name in tables.
        endpoint: The language model.
        ledger: File that stores the answers.
        request_limits: Maximum length of a history in a request.
        run_limits: Limits of concurrency, rates, attempts and cost.
    """

    name: str
    endpoint: Endpoint
    ledger: Path
    request_limits: HistoryLimits
    run_limits: RunLimits

    def recipe(self) -> dict[str, Any]:
        """Everything that determines the judgements."""
        return {
            **self.endpoint.settings(),
            **vars(self.request_limits),
            "prompts": {stage: prompt_of(stage).hash for stage in ATTRIBUTES},
        }


def ask_raters(
    raters: Sequence[Rater],
    requests: Callable[[Rater], Iterator[Request]],
    *,
    total: int,
    max_cost: float | None,
    name: str,
    engine: Engine,
) -> Iterator[tuple[Rater, Ledger, Report]]:
    """Asks each rater in turn. Yields the rater, its open ledger and the report.

    Args:
        raters: The raters.
        requests: Returns the requests for a rater.
        total: Number of requests per rater.
        max_cost: Maximum dollars for all raters together; None for no limit.
        name: Label of the progress bar.
        engine: Sends the requests from this process or from a cluster.

    Raises:
        ValueError: If `max_cost` would be exceeded, or all requests to a rater failed.
    """
    left = max_cost
    for rater in raters:
        limits = replace(rater.run_limits, max_cost=left)
        with Ledger(rater.ledger) as ledger:
            report = ask(
                functools.partial(requests, rater),
                total=total,
                endpoint=rater.endpoint,
                ledger=ledger,
                limits=limits,
                name=f"{name} {rater.name}",
                engine=engine,
            )
            check_report(report, replace(limits, max_cost=max_cost))
            yield rater, ledger, report
        left = None if left is None else max(0.0, left - report.dollars_in_all)
