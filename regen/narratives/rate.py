"""Stage `rate`: language models judge the narratives of every user (paper 3.3, appendices B and G)."""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, create_model

from regen.data.prepare import load_tables
from regen.data.tables import DataError
from regen.narratives.agreement import agreement, final_score, stage_confidence
from regen.narratives.ask_shards import ask
from regen.narratives.endpoint import Endpoint
from regen.narratives.histories import UserHistory, user_histories
from regen.narratives.ledger import Ledger
from regen.narratives.narrate import FAILURES, check_report
from regen.narratives.prompts import Limits, Prompt, Request, fenced
from regen.narratives.runner import Limits as RunLimits
from regen.narratives.runner import Report
from regen.runtime.shards import HERE, Engine
from regen.storage import identity
from regen.storage.artefacts import Artefact, build
from regen.storage.fingerprints import fingerprint

logger = logging.getLogger(__name__)

LEVELS = ("very low", "low", "rather low", "medium", "rather high", "high", "very high")
"""The seven points of the scale; a score is a level's position, 1 to 7."""
Level = Literal["very low", "low", "rather low", "medium", "rather high", "high", "very high"]

JUDGED = ("veracity", "grounding", "clarity", "foresight", "personalization")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "user_richness": ("user_richness",),
    "purchase_reason": JUDGED,
    "user_summary": tuple(name for name in JUDGED if name != "foresight"),
    "product_endorsement": JUDGED,
}
"""What is judged in each of the four stages, each a request of its own (paper 3.3)."""
JUDGED_FEATURES: dict[str, tuple[str, ...]] = {
    "user_richness": (),
    "purchase_reason": ("purchase_reason", "purchase_reason_explanation"),
    "user_summary": ("brief_user_summary", "long_user_summary", "user_profile"),
    "product_endorsement": ("product_endorsement",),
}
RATINGS = pl.Schema(
    {
        "user_id": pl.String(),
        "stage": pl.String(),
        "features": pl.List(pl.String()),
        "attribute": pl.String(),
        "score": pl.Int8(),
        "draws": pl.List(pl.Int8()),
        "confidence": pl.Float64(),
        "confidence_draws": pl.List(pl.Int8()),
        "rater": pl.String(),
        "model": pl.String(),
        "prompt": pl.String(),
    }
)
"""A judgement: final score 1 to 7, every draw of it, the stage's confidence, and who judged by which prompt."""


@functools.cache
def answer_model(stage: str) -> type[BaseModel]:
    """The form of a judgement: per attribute a level and the confidence in it."""
    fields: dict[str, Any] = {}
    for attribute in ATTRIBUTES[stage]:
        fields[attribute] = (Level, ...)
        fields[f"{attribute}_confidence"] = (Level, ...)
    return create_model(f"Rate_{stage}", **fields)


def __getattr__(name: str) -> Any:
    """`Rate_<stage>`, so that requests can be pickled: their forms are found by name as other classes are."""
    stage = name.removeprefix("Rate_")
    if stage == name or stage not in ATTRIBUTES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return answer_model(stage)


@functools.cache
def prompt_of(stage: str) -> Prompt:
    """The stage's template."""
    return Prompt(f"rate_{stage}", answer_model(stage))


@dataclass(frozen=True)
class Rater:
    """A language model that judges.

    Attributes:
        name: What tables call it.
        endpoint: The model.
        ledger: Where answers are kept.
        request_limits: How much of a history a request holds.
        run_limits: Concurrency, rates, attempts, money.
    """

    name: str
    endpoint: Endpoint
    ledger: Path
    request_limits: Limits
    run_limits: RunLimits

    def recipe(self) -> dict[str, Any]:
        """Everything that determines its judgements."""
        return {
            **self.endpoint.settings(),
            **vars(self.request_limits),
            "prompts": {stage: prompt_of(stage).hash for stage in ATTRIBUTES},
        }


@dataclass(frozen=True)
class Subject:
    """A user with the narratives to judge.

    Attributes:
        history: The user's purchases.
        narratives: Text of each feature; of several purchases spoken of, those about one.
        about: The item that a feature's text speaks of, for features about one item.
    """

    history: UserHistory
    narratives: Mapping[str, str | None]
    about: Mapping[str, str] = field(default_factory=dict)

    def stages(self) -> Iterator[str]:
        """The history always; of the others those that have a text."""
        for stage, features in JUDGED_FEATURES.items():
            if not features or (any(self.narratives.get(name) for name in features) and self.told(stage)):
                yield stage

    def told(self, stage: str) -> UserHistory | None:
        """The history up to the item that the stage's texts speak of; None where it is not among the purchases."""
        items = [self.about[feature] for feature in JUDGED_FEATURES[stage] if feature in self.about]
        return self.history.ending_with(items[0]) if items else self.history

    def request(self, stage: str, limits: Limits, draw: int) -> Request:
        """One draw of one stage; no other stage's texts or scores are in it."""
        texts = {feature: self.narratives.get(feature) for feature in JUDGED_FEATURES[stage]}
        values = {"narratives": fenced(texts)} if texts else {}
        history = self.told(stage)
        assert history is not None  # `stages` has left such a stage out
        return prompt_of(stage).request(history, limits, draw=draw, **values)


def subjects(
    data: Artefact, *, max_history: int, users: int | None, narratives: pl.DataFrame | None = None
) -> list[Subject]:
    """Users with narratives, drawn by a hash of their id where only some are wanted.

    Args:
        data: Histories, and narratives unless others are given.
        max_history: Of a user's purchases the latest.
        users: Only so many; null for all.
        narratives: Other texts (`user_id`, `feature`, `item_id`, `text`), for instance what a model wrote.

    Raises:
        DataError: If there are no narratives.
    """
    tables = load_tables(data.path)
    narratives = tables.narratives if narratives is None else narratives
    if narratives.is_empty():
        raise DataError(f"{data.path} has no narratives to rate. Choose what writes them: narrator=template or openai.")
    texts: dict[str, dict[str, str | None]] = {}
    about: dict[str, dict[str, str]] = {}
    for user, feature, item, text in narratives.select("user_id", "feature", "item_id", "text").iter_rows():
        if feature in texts.setdefault(user, {}):
            continue
        texts[user][feature] = text
        if item is not None:
            about.setdefault(user, {})[feature] = item
    narrated = replace(tables, interactions=tables.interactions.filter(pl.col("user_id").is_in(list(texts))))
    histories = user_histories(narrated, max_history=max_history, users=users)
    return [Subject(history, texts[history.user_id], about.get(history.user_id, {})) for history in histories]


def requests_of(rater: Rater, people: Sequence[Subject], draws: int) -> Iterator[Request]:
    """Every draw of every stage of every user."""
    for subject in people:
        for stage in subject.stages():
            for draw in range(draws):
                yield subject.request(stage, rater.request_limits, draw)


def rate(
    raters: Sequence[Rater],
    *,
    data: Artefact,
    draws: int,
    max_history: int,
    users: int | None,
    max_cost: float | None,
    root: Path,
    narratives: pl.DataFrame | None = None,
    force: bool = False,
    engine: Engine = HERE,
) -> Artefact:
    """Builds or reuses the ratings of a narrated data set, or of what a model wrote about its users.

    Writes `ratings.parquet`, `agreement.parquet` (between raters, and between each one's draws), `failures.parquet`.

    Args:
        raters: Who judges.
        data: Prepared or narrated data.
        draws: Independent answers to each question, of which the final score is made.
        max_history: Of a user's purchases a rater reads the latest.
        users: Only so many users, null for all that have narratives.
        max_cost: Dollars for all raters together; null for no limit.
        root: Folder that holds artefacts.
        narratives: Other texts (`user_id`, `feature`, `item_id`, `text`) than the data's own.
        force: Build again; what a ledger holds is not asked again.
        engine: Where requests are sent from.

    Raises:
        DataError: If there are no narratives.
        ValueError: If `max_cost` would be passed, or a rater answers nothing.
    """
    if draws < 1:
        raise ValueError(f"draws={draws} has to be at least 1.")

    def make(folder: Path) -> dict[str, int]:
        people = subjects(data, max_history=max_history, users=users, narratives=narratives)
        rows: list[dict[str, Any]] = []
        failures: list[tuple[str, str, str]] = []
        counts: Counter[str] = Counter()
        total = sum(1 for subject in people for _ in subject.stages()) * draws
        asked = ask_raters(
            raters,
            lambda rater: requests_of(rater, people, draws),
            total=total,
            max_cost=max_cost,
            name="rate",
            engine=engine,
        )
        for rater, ledger, report in asked:
            rows += [row for subject in people for row in _judgements(subject, rater, ledger, draws)]
            failures += report.failures
            counts.update({f"requests.{name}": count for name, count in report.counts.items()})
        ratings = pl.DataFrame(rows, schema=RATINGS, orient="row").sort("user_id", "rater", "stage", "attribute")
        ratings.write_parquet(folder / "ratings.parquet")
        agreement(ratings).write_parquet(folder / "agreement.parquet")
        pl.DataFrame(failures, schema=FAILURES, orient="row").sort(FAILURES.names()).write_parquet(
            folder / "failures.parquet"
        )
        return {
            "users": len(people),
            "ratings": len(ratings),
            "failures": len(failures),
            **dict(sorted(counts.items())),
        }

    written = None
    if narratives is not None:
        written = fingerprint({"rows": narratives.select("user_id", "feature", "text").rows()})
    request = identity.rated(
        data.fingerprint,
        data.manifest["files"]["narratives.parquet"]["sha256"],
        {rater.name: rater.recipe() for rater in raters},
        written=written,
        draws=draws,
        max_history=max_history,
        users=users,
    )
    return build(**request, root=root, make=make, force=force)


def ask_raters(
    raters: Sequence[Rater],
    requests: Callable[[Rater], Iterator[Request]],
    *,
    total: int,
    max_cost: float | None,
    name: str,
    engine: Engine,
) -> Iterator[tuple[Rater, Ledger, Report]]:
    """Asks each rater in turn; gives it with its open ledger and what the run did.

    Args:
        raters: Whom to ask.
        requests: Makes what to ask of a rater.
        total: How many requests that are.
        max_cost: Dollars for all raters together; null for no limit.
        name: On the progress bar.
        engine: Where requests are sent from.

    Raises:
        ValueError: If `max_cost` would be passed, or a rater answers nothing.
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


def _judgements(subject: Subject, rater: Rater, ledger: Ledger, draws: int) -> Iterator[dict[str, Any]]:
    settings = rater.endpoint.settings()
    for stage in subject.stages():
        answers, model = [], ""
        for draw in range(draws):
            found = ledger.answer(subject.request(stage, rater.request_limits, draw).key(settings))
            if found is not None:
                answers.append(answer_model(stage).model_validate_json(found.text).model_dump())
                model = found.model
        if not answers:
            continue
        scores = {name: [_score(answer[name]) for answer in answers] for name in ATTRIBUTES[stage]}
        confidences = {name: [_score(answer[f"{name}_confidence"]) for answer in answers] for name in scores}
        for attribute in scores:
            yield {
                "user_id": subject.history.user_id,
                "stage": stage,
                "features": list(JUDGED_FEATURES[stage]),
                "attribute": attribute,
                "score": final_score(scores[attribute]),
                "draws": scores[attribute],
                "confidence": stage_confidence(list(confidences.values())),
                "confidence_draws": confidences[attribute],
                "rater": rater.name,
                "model": model,
                "prompt": f"{prompt_of(stage).name} {prompt_of(stage).hash}",
            }


def _score(level: str) -> int:
    return LEVELS.index(level) + 1
