"""Limits of a run of requests, and the report of what it did."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from regen.narratives.endpoint import Price

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLimits:
    """Limits of a run.

    Attributes:
        concurrency: Maximum number of concurrent requests.
        requests_per_minute: None for no limit.
        tokens_per_minute: Tokens of prompts and answers, estimated; None for no limit.
        max_attempts: Maximum number of attempts per request.
        price: None if unknown.
        max_cost: Maximum dollars for these requests, including earlier runs; None for no limit.
    """

    concurrency: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    max_attempts: int
    price: Price | None
    max_cost: float | None

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be at least 1.")
        if self.max_cost is not None and self.max_cost < 0:
            raise ValueError(f"max_cost={self.max_cost} has to be at least 0; null is no limit.")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} has to be above 0; null is no limit.")
        if self.max_cost is not None and self.price is None:
            raise ValueError(
                f"max_cost={self.max_cost} needs the endpoint's price: set price.prompt and price.completion."
            )


@dataclass
class Report:
    """What a run did.

    Attributes:
        counts: `requests`, `reused`, `answered`, `invalid`, `refused`, `again` (attempts to repeat), `failed` and
            `uncounted` (answers without token counts).
        failures: User, prompt and reason of each request without a usable answer.
        given_up: Keys of these requests.
        dollars: Cost of this run. Interrupted requests and unreported tokens count with their maximum cost.
        dollars_before: Cost of earlier, interrupted runs for the same requests.
        out_of_money: Whether the run stopped because it would exceed `max_cost`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    given_up: set[str] = field(default_factory=set)
    dollars: float = 0.0
    dollars_before: float = 0.0
    out_of_money: bool = False

    @property
    def dollars_in_all(self) -> float:
        """Cost of these requests so far, including earlier runs."""
        return self.dollars_before + self.dollars

    def add(self, other: "Report") -> None:
        """Adds the report of another part of the same run, whose requests are counted already."""
        self.counts.update({name: count for name, count in other.counts.items() if name != "requests"})
        self.failures += other.failures
        self.given_up |= other.given_up
        self.dollars += other.dollars
        self.out_of_money |= other.out_of_money


def check_report(report: Report, limits: RunLimits) -> None:
    """Logs the failures of a run.

    Raises:
        ValueError: If the run stopped because of `max_cost`, or every request failed.
    """
    if report.out_of_money:
        uncounted = report.counts["uncounted"]
        why = f" {uncounted:,} answers came without `usage` and count with their maximum cost." if uncounted else ""
        raise ValueError(
            f"max_cost={limits.max_cost} dollars would be exceeded: ${report.dollars:.4f} were spent in this run.{why} "
            f"{report.counts['answered']:,} answers are kept. The same command with a higher max_cost continues."
        )
    if not report.failures:
        return
    reasons = Counter(f"{prompt}: {reason}" for _, prompt, reason in report.failures)
    shown = "\n".join(f"{count:>8,}  {reason}" for reason, count in reasons.most_common(10))
    failed, asked = len(report.failures), report.counts["requests"]
    if failed == asked:
        raise ValueError(f"All {failed:,} requests failed:\n{shown}")
    logger.warning(
        "%d of %d requests failed and are listed in failures.parquet. force=true asks them again:\n%s",
        failed,
        asked,
        shown,
    )


def write_failures(failures: Sequence[tuple[str, str, str]], folder: Path) -> None:
    """Writes `failures.parquet`: user, prompt and reason of each failed request."""
    schema = pl.Schema({"user_id": pl.String(), "prompt": pl.String(), "reason": pl.String()})
    frame = pl.DataFrame(failures, schema=schema, orient="row").sort(schema.names())
    frame.write_parquet(folder / "failures.parquet")
