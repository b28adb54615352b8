"""Stage `narrate`: writes the six features of every user, by LM or templates (paper 3.2, appendices B and F)."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from regen.data.prepare import load_tables
from regen.data.tables import FEATURES, ITEM_FEATURES, NARRATIVE_KEY, NARRATIVES, DataError
from regen.narratives import answers, template
from regen.narratives.ask_shards import ask
from regen.narratives.endpoint import CHARACTERS_PER_TOKEN, Endpoint
from regen.narratives.histories import UserHistory, user_histories
from regen.narratives.ledger import Ledger
from regen.narratives.prompts import HistoryLimits, Prompt, Request
from regen.narratives.report import RunLimits, check_report, write_failures
from regen.runtime.shards import HERE, Engine
from regen.storage import identity
from regen.storage.artefacts import Artefact, build

NARRATED = pl.Schema(
    {
        **NARRATIVES,
        "narrator": pl.String(),
        "model": pl.String(),
        "prompt": pl.String(),
        "sampling": pl.String(),
        "written": pl.String(),
    }
)
"""A narrative and its origin: narrator, model, prompt and its hash, sampling settings as JSON, UTC time."""
QUOTE_WORDS = 8  # a narrative with this many words in a row of a review quotes it

PROMPTS = {
    "reasons": Prompt("reasons", answers.ReasonsAndSummaries, examples=True),
    "endorsement": Prompt("endorsement", answers.Endorsement),
}

Histories = Callable[[], Iterator[UserHistory]]


@dataclass
class Written:
    """Output of a narrator: rows of `NARRATED`, failures (user, prompt, reason) and counts."""

    rows: list[dict[str, Any]]
    failures: list[tuple[str, str, str]]
    counts: dict[str, int]


class Narrator(Protocol):
    """Writes reference narratives."""

    def recipe(self) -> dict[str, Any]:
        """Everything that determines the narratives."""

    def write(self, histories: Histories, total: int) -> Written:
        """Writes the narratives of all histories."""


class TemplateNarrator:
    """Writes by fixed rules, without a language model; see `regen.narratives.template`."""

    def recipe(self) -> dict[str, Any]:
        """The version of the rules."""
        return {"narrator": "template", "version": template.VERSION}

    def write(self, histories: Histories, total: int) -> Written:
        """One row per user and feature."""
        origin = {"narrator": "template", "model": f"template {template.VERSION}"}
        rows = [
            _row(history, feature, text, **origin)
            for history in histories()
            for feature, text in template.narrate(history).items()
        ]
        return Written(rows, [], {})


@dataclass(frozen=True, kw_only=True)
class OpenAINarrator:
    """Writes with a language model at an OpenAI-compatible endpoint, with two requests per user.

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

    def requests(self, histories: Histories) -> Iterator[Request]:
        """Two requests per history. The one for the endorsement does not contain the final review."""
        for history in histories():
            yield PROMPTS["reasons"].request(history, self.request_limits)
            yield PROMPTS["endorsement"].request(history.without_final_review(), self.request_limits)

    def write(self, histories: Histories, total: int) -> Written:
        """Sends the requests without an answer in the ledger, then collects all answers.

        Raises:
            ValueError: If `max_cost` would be exceeded, or all requests failed.
        """
        with Ledger(self.ledger) as ledger:
            report = ask(
                lambda: self.requests(histories),
                total=2 * total,
                endpoint=self.endpoint,
                ledger=ledger,
                limits=self.run_limits,
                name="narrate",
                engine=self.engine,
            )
            check_report(report, self.run_limits)
            rows = [row for history in histories() for row in self._rows(history, ledger)]
        counts = {f"requests.{name}": count for name, count in sorted(report.counts.items())}
        return Written(rows, report.failures, counts)

    def _rows(self, history: UserHistory, ledger: Ledger) -> Iterator[dict[str, Any]]:
        settings = self.endpoint.settings()
        for request in self.requests(lambda: iter([history])):
            found = ledger.answer(request.key(settings))
            if found is None:
                continue
            origin = {
                "narrator": "openai",
                "model": found.model,
                "prompt": f"{request.prompt} {PROMPTS[request.prompt].hash}",
                "sampling": json.dumps(vars(self.endpoint.sampling), sort_keys=True),
                "written": found.created,
            }
            for feature, text in request.answer.model_validate_json(found.text).model_dump().items():
                yield _row(history, feature, text, **origin)


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


def narrate(
    narrator: Narrator,
    *,
    prepared: Artefact,
    max_history: int,
    users: int | None,
    root: Path,
    force: bool = False,
) -> Artefact:
    """Builds or reuses a data set with the narratives of a narrator.

    The artefact has the prepared items and interactions and the new narratives, so it can replace prepared data.
    `failures.parquet` lists the requests without an answer.

    Args:
        narrator: Writes the narratives.
        prepared: The prepared data. Their own narratives are not copied.
        max_history: Maximum number of purchases the narrator reads, the latest ones.
        users: Maximum number of users, None for all.
        root: Folder of the artefacts.
        force: Build again. Answers in the ledger are still reused.

    Raises:
        DataError: If no user bought an item with a title.
    """
    histories, total = histories_of(prepared, max_history=max_history, users=users)

    def make(folder: Path) -> dict[str, int]:
        written = narrator.write(histories, total)
        frame = pl.DataFrame(written.rows, schema=NARRATED, orient="row").sort(NARRATIVE_KEY)
        for name in ("items", "interactions"):
            _link(prepared.path / f"{name}.parquet", folder / f"{name}.parquet")
        frame.write_parquet(folder / "narratives.parquet")
        write_failures(written.failures, folder)
        reviews = load_tables(prepared.path).interactions
        return {
            "users": total,
            "narratives": len(frame),
            "narratives.null": frame["text"].null_count(),
            "narratives.quoting_a_review": count_quotes(frame, reviews),
            "failures": len(written.failures),
            **{f"narratives.{feature}": int((frame["feature"] == feature).sum()) for feature in FEATURES},
            **written.counts,
        }

    request = identity.narrated(prepared.fingerprint, narrator.recipe(), max_history=max_history, users=users)
    return build(**request, root=root, make=make, force=force)


def histories_of(prepared: Artefact, *, max_history: int, users: int | None) -> tuple[Histories, int]:
    """A function that iterates over the histories of a prepared data set, and their number.

    Raises:
        DataError: If there is no history.
    """
    tables = load_tables(prepared.path)

    def histories() -> Iterator[UserHistory]:
        return user_histories(tables, max_history=max_history, users=users)

    titled = tables.items.filter(pl.col("title").is_not_null()).select("item_id")
    total = tables.interactions.join(titled, on="item_id", how="semi")["user_id"].n_unique()
    if not total:
        raise DataError(f"{prepared.path}: nobody bought an item with a title, so there is nobody to write about.")
    return histories, total if users is None else min(users, total)


def estimate(
    requests: Iterator[Request], *, endpoint: Endpoint, ledger: Path, limits: RunLimits
) -> Mapping[str, float | int | None]:
    """Number of requests and maximum cost of a run, with four characters per token and answers of maximum length."""
    settings = endpoint.settings()
    total = known = 0
    prompt_tokens = 0.0
    with Ledger(ledger) if ledger.exists() else nullcontext() as answers_so_far:
        for request in requests:
            total += 1
            if answers_so_far is not None and answers_so_far.answer(request.key(settings)) is not None:
                known += 1
            else:
                prompt_tokens += request.characters / CHARACTERS_PER_TOKEN
    completion_tokens = (total - known) * endpoint.sampling.max_tokens
    return {
        "requests": total,
        "already_answered": known,
        "prompt_tokens": round(prompt_tokens),
        "completion_tokens_at_most": completion_tokens,
        "dollars_at_most": None if limits.price is None else limits.price.of(prompt_tokens, completion_tokens),
    }


def count_quotes(narratives: pl.DataFrame, interactions: pl.DataFrame) -> int:
    """Number of narratives that share eight words in a row with a review of their user."""
    by_user = narratives.drop_nulls("text").group_by("user_id").agg("text")
    reviews = interactions.drop_nulls("review_text").group_by("user_id").agg("review_text")
    return sum(
        bool(_grams(text) & quoted)
        for texts, written in by_user.join(reviews, on="user_id").select("text", "review_text").iter_rows()
        for quoted in [set().union(*map(_grams, written))]
        for text in texts
    )


def _grams(text: str) -> set[tuple[str, ...]]:
    words = text.casefold().split()
    return {tuple(words[at : at + QUOTE_WORDS]) for at in range(len(words) - QUOTE_WORDS + 1)}


def _link(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
