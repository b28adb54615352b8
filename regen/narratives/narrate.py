"""Stage `narrate`: six features of every user, by a language model or by templates (paper 3.2, appendices B and F)."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from regen.narratives.prompts import Limits, Prompt, Request
from regen.narratives.runner import Limits as RunLimits
from regen.narratives.runner import Report
from regen.runtime.shards import HERE, Engine
from regen.storage import identity
from regen.storage.artefacts import Artefact, build

logger = logging.getLogger(__name__)

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
"""A narrative and what wrote it: narrator, model, prompt and its hash, sampling settings as JSON, UTC time."""
FAILURES = pl.Schema({"user_id": pl.String(), "prompt": pl.String(), "reason": pl.String()})
QUOTE_WORDS = 8  # in a row, from which a narrative counts as quoting a review

PROMPTS = {
    "reasons": Prompt("reasons", answers.ReasonsAndSummaries, examples=True),
    "endorsement": Prompt("endorsement", answers.Endorsement),
}

Histories = Callable[[], Iterator[UserHistory]]


@dataclass
class Written:
    """What a narrator made: rows of `NARRATED`, rows of `FAILURES`, and counts."""

    rows: list[dict[str, Any]]
    failures: list[tuple[str, str, str]]
    counts: dict[str, int]


class Narrator(Protocol):
    """What writes reference narratives."""

    def recipe(self) -> dict[str, Any]:
        """Everything that determines what it writes."""

    def write(self, histories: Histories, total: int) -> Written:
        """Writes about every history."""


class TemplateNarrator:
    """Fixed rules, no language model: see `regen.narratives.template`."""

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


class OpenAINarrator:
    """A language model behind an OpenAI-compatible endpoint; two requests a user.

    Args:
        endpoint: The model.
        ledger: Where answers are kept.
        request_limits: How much of a history a request holds.
        run_limits: Concurrency, rates, attempts, money.
        engine: Where requests are sent from.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        ledger: Path,
        request_limits: Limits,
        run_limits: RunLimits,
        engine: Engine = HERE,
    ) -> None:
        self.engine = engine
        self.endpoint = endpoint
        self.ledger = ledger
        self.request_limits = request_limits
        self.run_limits = run_limits

    def recipe(self) -> dict[str, Any]:
        """Endpoint, model, sampling, prompts and what of a history they hold."""
        return {
            "narrator": "openai",
            **self.endpoint.settings(),
            **vars(self.request_limits),
            "prompts": {name: prompt.hash for name, prompt in PROMPTS.items()},
        }

    def requests(self, histories: Histories) -> Iterator[Request]:
        """The endorsement never sees the final review."""
        for history in histories():
            yield PROMPTS["reasons"].request(history, self.request_limits)
            yield PROMPTS["endorsement"].request(history.without_final_review(), self.request_limits)

    def write(self, histories: Histories, total: int) -> Written:
        """Asks what the ledger does not have, then puts all answers together.

        Raises:
            ValueError: If `max_cost` would be passed, or nothing was answered.
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


def check_report(report: Report, limits: RunLimits) -> None:
    """Tells of failures; refuses what must not become an artefact.

    Raises:
        ValueError: If the run stopped for money, or every request failed.
    """
    if report.out_of_money:
        uncounted = report.counts["uncounted"]
        why = f" {uncounted:,} answers came without `usage` and count with the most they can cost." if uncounted else ""
        raise ValueError(
            f"max_cost={limits.max_cost} dollars would be passed: ${report.dollars:.4f} were spent in this run.{why} "
            f"{report.counts['answered']:,} answers came and are kept; a higher max_cost goes on from there."
        )
    if report.failures:
        reasons: dict[str, int] = {}
        for _, prompt, reason in report.failures:
            reasons[f"{prompt}: {reason}"] = reasons.get(f"{prompt}: {reason}", 0) + 1
        shown = "\n".join(
            f"{count:>8,}  {reason}" for reason, count in sorted(reasons.items(), key=lambda r: -r[1])[:10]
        )
        failed, asked = len(report.failures), report.counts["requests"]
        if failed == asked:
            raise ValueError(f"All {failed:,} requests failed:\n{shown}")
        logger.warning(
            "%d of %d requests failed for good and are listed in failures.parquet; force=true asks them again:\n%s",
            failed,
            asked,
            shown,
        )


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
    """Builds or reuses a data set whose narratives this narrator wrote.

    The folder holds the prepared items and interactions beside the new narratives, so that whatever reads prepared data
    reads it as well; `failures.parquet` lists requests without an answer.

    Args:
        narrator: Writes.
        prepared: The data; narratives that it has are left behind.
        max_history: Of a user's purchases the narrator reads the latest.
        users: Only so many users, null for all.
        root: Folder that holds artefacts.
        force: Build again; what a ledger holds is not asked again.

    Raises:
        DataError: If there is nobody to write about.
    """
    histories, total = histories_of(prepared, max_history=max_history, users=users)

    def make(folder: Path) -> dict[str, int]:
        written = narrator.write(histories, total)
        frame = pl.DataFrame(written.rows, schema=NARRATED, orient="row").sort(NARRATIVE_KEY)
        for name in ("items", "interactions"):
            _link(prepared.path / f"{name}.parquet", folder / f"{name}.parquet")
        frame.write_parquet(folder / "narratives.parquet")
        pl.DataFrame(written.failures, schema=FAILURES, orient="row").sort(FAILURES.names()).write_parquet(
            folder / "failures.parquet"
        )
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
    """The histories of a prepared data set, made anew at each call, and how many.

    Raises:
        DataError: If there are none.
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
    """What a run would ask and cost at most, without asking: four characters a token, every answer of full length."""
    settings = endpoint.settings()
    total = known = 0
    prompt_tokens = 0.0
    if ledger.exists():
        with Ledger(ledger) as book:
            for request in requests:
                total += 1
                if book.answer(request.key(settings)) is not None:
                    known += 1
                else:
                    prompt_tokens += request.characters / CHARACTERS_PER_TOKEN
    else:
        for request in requests:
            total += 1
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
    """How many narratives share eight words in a row with a review of their user."""
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
    """The same file under another name, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
