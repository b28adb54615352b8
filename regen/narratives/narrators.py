"""Narrators: write the six features of every user, and critiques, by LM or templates (paper 3.2, B and F)."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from regen.data import critiques as rules
from regen.data.critiques import Pairs, rule_texts
from regen.data.tables import ITEM_FEATURES, NARRATIVES
from regen.narratives import answers, template
from regen.narratives.ask_shards import ask
from regen.narratives.critiques import ORIGIN, critique_requests
from regen.narratives.critiques import PROMPT as CRITIQUE
from regen.narratives.endpoint import Endpoint
from regen.narratives.histories import UserHistory
from regen.narratives.ledger import Answer, Ledger
from regen.narratives.prompts import HistoryLimits, Prompt, Request
from regen.narratives.report import RunLimits, check_report
from regen.runtime.shards import HERE, Engine

NARRATED = pl.Schema({**NARRATIVES, **ORIGIN})
"""A narrative and its origin."""

PROMPTS = {
    "reasons": Prompt("reasons", answers.ReasonsAndSummaries, examples=True),
    "endorsement": Prompt("endorsement", answers.Endorsement),
    "critique": CRITIQUE,
}


@dataclass(frozen=True)
class Work:
    """What a narrator writes about.

    Attributes:
        histories: Returns an iterator over the users' histories.
        users: Number of histories.
        pairs: The adjacent purchases to write critiques about; None for no critiques.
    """

    histories: Callable[[], Iterator[UserHistory]]
    users: int
    pairs: Pairs | None


@dataclass
class Written:
    """Output of a narrator.

    Attributes:
        rows: Rows of `NARRATED`.
        critiques: `from_item_id`, `to_item_id`, `text` and origin of the critique for each two items that have one.
        failures: User, prompt and reason of each request without an answer.
        counts: Counts for the manifest.
    """

    rows: list[dict[str, Any]]
    critiques: list[dict[str, Any]] = field(default_factory=list)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class Narrator(Protocol):
    """Writes reference narratives and critiques."""

    def recipe(self) -> dict[str, Any]:
        """Everything that determines the texts."""

    def write(self, work: Work) -> Written:
        """Writes the narratives of all histories and the critiques of all pairs."""


class TemplateNarrator:
    """Writes by fixed rules, without a language model; see `regen.narratives.template` and `regen.data.critiques`."""

    def recipe(self) -> dict[str, Any]:
        """The versions of the rules."""
        return {"narrator": "template", "version": template.VERSION, "critiques": rules.VERSION}

    def write(self, work: Work) -> Written:
        """One row per user and feature, and a critique of each two items that differ in an attribute."""
        origin = {"narrator": "template", "model": f"template {template.VERSION}"}
        rows = [
            _row(history, feature, text, **origin)
            for history in work.histories()
            for feature, text in template.narrate(history).items()
        ]
        origin["model"] = f"rules {rules.VERSION}"
        return Written(rows, [{**row, **origin} for row in rule_texts(work.pairs)] if work.pairs else [])


@dataclass(frozen=True, kw_only=True)
class OpenAINarrator:
    """Writes with a language model at an OpenAI-compatible endpoint.

    Sends two requests per user, and one for each two items that have a critique.

    Attributes:
        endpoint: The language model.
        ledger: File that stores the answers.
        request_limits: Maximum length of a history in a request.
        run_limits: Limits of concurrency, rates, attempts and cost.
        engine: Sends the requests from this process or from a cluster.
    """

    endpoint: Endpoint
    ledger: Path
    request_limits: HistoryLimits
    run_limits: RunLimits
    engine: Engine = field(default_factory=lambda: HERE)

    def recipe(self) -> dict[str, Any]:
        """Endpoint, model, sampling, prompts and limits of the history."""
        return {
            "narrator": "openai",
            **self.endpoint.settings(),
            **vars(self.request_limits),
            "prompts": {name: prompt.hash for name, prompt in PROMPTS.items()},
        }

    def requests(self, work: Work) -> Iterator[Request]:
        """The requests for all narratives, then those for all critiques."""
        for history in work.histories():
            yield from self._of_user(history)
        if work.pairs is not None:
            for request, _, _ in critique_requests(work.pairs, self.request_limits):
                yield request

    def _of_user(self, history: UserHistory) -> Iterator[Request]:
        """Two requests. The one for the endorsement does not contain the final review."""
        yield PROMPTS["reasons"].request(history, self.request_limits)
        yield PROMPTS["endorsement"].request(history.without_final_review(), self.request_limits)

    def write(self, work: Work) -> Written:
        """Sends the requests without an answer in the ledger, then collects all answers.

        Raises:
            ValueError: If `max_cost` would be exceeded, or all requests failed.
        """
        distinct = 0 if work.pairs is None else sum(1 for _ in work.pairs.distinct())
        with Ledger(self.ledger) as ledger:
            report = ask(
                lambda: self.requests(work),
                total=2 * work.users + distinct,
                endpoint=self.endpoint,
                ledger=ledger,
                limits=self.run_limits,
                name="narrate",
                engine=self.engine,
            )
            check_report(report, self.run_limits)
            rows = [row for history in work.histories() for row in self._rows(history, ledger)]
            critiques = [] if work.pairs is None else list(self._critiques(work.pairs, ledger))
        counts = {f"requests.{name}": count for name, count in sorted(report.counts.items())}
        return Written(rows, critiques, report.failures, counts)

    def _rows(self, history: UserHistory, ledger: Ledger) -> Iterator[dict[str, Any]]:
        settings = self.endpoint.settings()
        for request in self._of_user(history):
            if found := ledger.answer(request.key(settings)):
                for feature, text in request.read(found.text).model_dump().items():
                    yield _row(history, feature, text, **self._origin(request, found))

    def _critiques(self, pairs: Pairs, ledger: Ledger) -> Iterator[dict[str, Any]]:
        settings = self.endpoint.settings()
        for request, last, following in critique_requests(pairs, self.request_limits):
            if found := ledger.answer(request.key(settings)):
                text = request.read(found.text).model_dump()["critique"]
                if text is not None:
                    between = {"from_item_id": last["item_id"], "to_item_id": following["item_id"]}
                    yield {**between, "text": text, **self._origin(request, found)}

    def _origin(self, request: Request, found: Answer) -> dict[str, str]:
        return {
            "narrator": "openai",
            "model": found.model,
            "prompt": f"{request.prompt} {PROMPTS[request.prompt].hash}",
            "sampling": json.dumps(vars(self.endpoint.sampling), sort_keys=True),
            "written": found.created,
        }


def _row(history: UserHistory, feature: str, text: str | None, **origin: str) -> dict[str, Any]:
    about = history.final if feature in ITEM_FEATURES else None
    return {
        **dict.fromkeys(NARRATED.names()),
        "user_id": history.user_id,
        "feature": feature,
        "item_id": about.item_id if about else None,
        "timestamp": about.timestamp if about else None,
        "text": text,
        **origin,
    }
