"""Sends requests from this process or, with `engine=ray`, in shards on a cluster.

Each shard records its answers in its own ledger, which is merged into the main one at its end.
"""

import logging
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from regen.narratives.endpoint import Endpoint
from regen.narratives.ledger import Ledger
from regen.narratives.prompts import Request
from regen.narratives.report import Report, RunLimits
from regen.narratives.runner import ask_all
from regen.runtime.shards import Engine, RayEngine

logger = logging.getLogger(__name__)
STOP = "stop"  # a file that stops all shards; contains the reason


def ask(
    requests: Callable[[], Iterator[Request]],
    *,
    total: int,
    endpoint: Endpoint,
    ledger: Ledger,
    limits: RunLimits,
    name: str,
    engine: Engine,
) -> Report:
    """Runs `ask_all`, on the cluster if the engine is a `RayEngine`. Other arguments as for `ask_all`.

    Raises:
        ValueError: If the endpoint refuses all requests.
        KeyboardInterrupt: After an interrupt.
    """
    if not isinstance(engine, RayEngine):
        return ask_all(requests, total=total, endpoint=endpoint, ledger=ledger, limits=limits, name=name)
    folder = ledger.path.with_name(f"{ledger.path.name}.shards")
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        for killed in sorted(folder.glob("*.sqlite")):  # paid answers of a killed run
            _take_in(ledger, killed)
        for left_over in (*folder.glob("*.requests"), *folder.glob(STOP)):
            left_over.unlink()
        report, shards, twins = _write_shards(
            folder, requests, endpoint=endpoint, ledger=ledger, limits=limits, size=engine.requests
        )
        logger.info("%s: %d requests, %d shards to ask", name, report.counts["requests"], len(shards))
        work = AskShard(endpoint, _share_of_rates(limits, min(engine.asking, len(shards))), name)
        errors = []
        for done in engine.map(work, shards, name=name, at_once=engine.asking):
            if (shard_ledger := done.path.with_suffix(".sqlite")).exists():
                _take_in(ledger, shard_ledger)
            done.path.unlink()
            report.add(done.report)
            errors += [done.error] if done.error else []
        (folder / STOP).unlink(missing_ok=True)
        if errors:
            raise ValueError(errors[0])
        rest = twins  # usually answered by now
        if report.out_of_money:  # what the shards have left may together pay for more requests
            rest = [*_unasked(requests, endpoint, ledger, report.given_up), *rest]
            report.out_of_money = False
        if rest:
            if limits.max_cost is not None:
                paid = sum(ledger.dollars(key) for key in {request.key(endpoint.settings()) for request in rest})
                limits = replace(limits, max_cost=max(0.0, limits.max_cost - report.dollars_in_all + paid))
            report.add(
                ask_all(
                    lambda: iter(rest),
                    total=len(rest),
                    endpoint=endpoint,
                    ledger=ledger,
                    limits=limits,
                    name=f"{name}, the rest",
                )
            )
        return report


def _unasked(
    requests: Callable[[], Iterator[Request]], endpoint: Endpoint, ledger: Ledger, given_up: set[str]
) -> list[Request]:
    """The distinct requests that no shard could pay for."""
    settings = endpoint.settings()
    by_key = {request.key(settings): request for request in requests()}
    return [request for key, request in by_key.items() if key not in given_up and ledger.answer(key) is None]


@dataclass(frozen=True)
class ShardDone:
    """Result of a shard: its file, its report, and the error if the endpoint could not be used."""

    path: Path
    report: Report
    error: str | None


@dataclass(frozen=True)
class AskShard:
    """Sends the requests of a shard. The engine may call it on another machine.

    Attributes:
        endpoint: Where to send them.
        limits: RunLimits of the shard, except its share of the money.
        name: Name of the stage.
    """

    endpoint: Endpoint
    limits: RunLimits
    name: str

    def __call__(self, shard: tuple[Path, float | None]) -> ShardDone:
        """Takes the shard's file and its maximum cost in dollars."""
        path, max_cost = shard
        stop = path.with_name(STOP)
        if stop.exists():
            return ShardDone(path, Report(), stop.read_text())
        requests, unusable = pickle.loads(path.read_bytes())
        with Ledger(path.with_suffix(".sqlite")) as ledger:
            try:
                report = ask_all(
                    lambda: iter(requests),
                    total=len(requests),
                    endpoint=self.endpoint,
                    ledger=ledger,
                    limits=replace(self.limits, max_cost=max_cost),
                    name=self.name,
                    unusable=unusable,
                )
            except ValueError as error:
                stop.write_text(str(error))
                return ShardDone(path, Report(), str(error))
        return ShardDone(path, report, None)


def _write_shards(
    folder: Path,
    requests: Callable[[], Iterator[Request]],
    *,
    endpoint: Endpoint,
    ledger: Ledger,
    limits: RunLimits,
    size: int,
) -> tuple[Report, list[tuple[Path, float | None]], list[Request]]:
    """Writes the requests without an answer to files of `size` requests.

    Returns:
        The report so far, the shards with their shares of the money, and requests that repeat one in the shards.
    """
    settings, report = endpoint.settings(), Report()
    seen: set[str] = set()
    asked: set[str] = set()
    files: list[tuple[Path, int]] = []
    part: list[Request] = []
    unusable: dict[str, int] = {}
    twins = []

    def write() -> None:
        path = folder / f"{len(files):06d}.requests"
        path.write_bytes(pickle.dumps((part, unusable)))
        files.append((path, len(part)))
        part.clear()
        unusable.clear()

    for request in requests():
        key = request.key(settings)
        report.counts["requests"] += 1
        if limits.max_cost is not None and key not in seen:
            report.dollars_before += ledger.dollars(key)
        seen.add(key)
        if key in asked:
            twins.append(request)
        elif ledger.answer(key) is not None:
            report.counts["reused"] += 1
        else:
            asked.add(key)
            part.append(request)
            unusable[key] = ledger.unusable(key)
            if len(part) == size:
                write()
    if part:
        write()
    left = None if limits.max_cost is None else max(0.0, limits.max_cost - report.dollars_before)
    shards = [(path, None if left is None else left * count / len(asked)) for path, count in files]
    return report, shards, twins


def _share_of_rates(limits: RunLimits, shards: int) -> RunLimits:
    """Rate limits of one of several concurrent shards."""
    rates = {name: getattr(limits, name) for name in ("requests_per_minute", "tokens_per_minute")}
    return replace(limits, **{name: rate / shards for name, rate in rates.items() if rate is not None and shards > 1})


def _take_in(ledger: Ledger, path: Path) -> None:
    ledger.take_in(path)
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        file.unlink(missing_ok=True)
