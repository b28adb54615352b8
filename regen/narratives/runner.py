"""Sends many requests: some at once, within limits of rate and money, each answer recorded before the next is asked."""

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from aiolimiter import AsyncLimiter
from pydantic import ValidationError
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)
from tqdm import tqdm

from regen.narratives.endpoint import (
    CHARACTERS_PER_TOKEN,
    AgainError,
    Endpoint,
    ForbiddenError,
    Price,
    RejectedError,
    Reply,
    UnusableEndpointError,
)
from regen.narratives.ledger import Ledger, Outcome
from regen.narratives.prompts import Request

logger = logging.getLogger(__name__)
DEAD = 64  # requests that fail in a row, without an answer to any, before the endpoint counts as dead
FORBIDDEN = 8  # the same for status 403, if nothing was ever answered
_BURST = 5.0  # seconds' worth of requests that may leave at once
BACKOFF = wait_exponential_jitter(multiplier=0.5, max=60.0, jitter=0.5)


@dataclass(frozen=True)
class Limits:
    """What the runner keeps to.

    Attributes:
        concurrency: Requests under way at once.
        requests_per_minute: Null for no limit.
        tokens_per_minute: Of prompts and answers, estimated before they are counted; null for no limit.
        max_attempts: At one request, in one run.
        price: Null if unknown.
        max_cost: Dollars that these requests may cost, earlier runs included; null for no limit.
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
        counts: `requests`, `reused`, `answered`, `invalid`, `refused`, `again`, `failed`, `uncounted` (answers whose
            tokens the endpoint did not report).
        failures: User, prompt and reason of each request that got no usable answer.
        given_up: Keys of those requests.
        dollars: What this run paid; a request that broke off and tokens not reported count with the most they can cost.
        dollars_before: What earlier, interrupted runs paid for the same requests.
        out_of_money: Whether the run stopped before `max_cost` would be passed.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    given_up: set[str] = field(default_factory=set)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    dollars_before: float = 0.0
    out_of_money: bool = False

    @property
    def dollars_in_all(self) -> float:
        """What these requests cost so far, in earlier runs too."""
        return self.dollars_before + self.dollars

    def add(self, other: "Report") -> None:
        """Adds what another part of the same run did; the requests it was given are counted already."""
        self.counts.update({name: count for name, count in other.counts.items() if name != "requests"})
        self.failures += other.failures
        self.given_up |= other.given_up
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.dollars += other.dollars
        self.out_of_money |= other.out_of_money


def ask_all(
    requests: Callable[[], Iterator[Request]],
    *,
    total: int,
    endpoint: Endpoint,
    ledger: Ledger,
    limits: Limits,
    name: str,
    unusable: Mapping[str, int] | None = None,
) -> Report:
    """Asks what the ledger has no answer to.

    An interrupt lets the requests under way finish and be recorded; a second one does not.

    Args:
        requests: Makes what to ask, one by one.
        total: How many there are, for the progress bar.
        endpoint: Whom.
        ledger: Where answers go.
        limits: Of rate, attempts and money.
        name: On the progress bar.
        unusable: By a request's key how many answers of no use another ledger has; their seeds are not tried again.

    Raises:
        ValueError: If the endpoint refuses everything, for instance because of the key.
        KeyboardInterrupt: After an interrupt.
    """
    for client in ("httpx", "httpx2"):  # openai's, by version; they log every answer
        logging.getLogger(client).setLevel(logging.WARNING)
    run = _Run(requests(), total, endpoint, ledger, limits, name, unusable or {})
    if limits.max_cost is not None:  # what an earlier, interrupted run of this job paid counts
        keys = {request.key(run.settings) for request in requests()}
        run.report.dollars_before = sum(map(ledger.dollars, keys))
    return asyncio.run(run.run())


class _Run:
    def __init__(
        self,
        requests: Iterator[Request],
        total: int,
        endpoint: Endpoint,
        ledger: Ledger,
        limits: Limits,
        name: str,
        unusable: Mapping[str, int],
    ) -> None:
        self.requests = requests
        self.unusable = unusable
        self.endpoint = endpoint
        self.ledger = ledger
        self.limits = limits
        self.report = Report()
        self.bar = tqdm(total=total, desc=name, unit="request")
        self.settings = endpoint.settings()
        self.price = limits.price or Price(0.0, 0.0)
        self.reserved = 0.0
        self.room = asyncio.Condition()
        self.resume_at = 0.0
        self.under_way: dict[str, asyncio.Event] = {}
        self.stop: BaseException | None = None
        self.failed_in_a_row = 0
        self.per_minute = _limiter(limits.requests_per_minute)
        tokens = limits.tokens_per_minute
        self.tokens = None if tokens is None else AsyncLimiter(tokens, 60.0)

    async def run(self) -> Report:
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in handled}
        try:
            for number in handled:
                loop.add_signal_handler(number, self._interrupt, number)
        except (ValueError, RuntimeError, NotImplementedError):  # not the main thread, or Windows
            before = {}
        try:
            async with self.endpoint:
                await asyncio.gather(*(self._work_or_stop() for _ in range(self.limits.concurrency)))
        finally:
            self.bar.close()
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)
        if isinstance(self.stop, UnusableEndpointError):
            raise ValueError(
                f"{self.endpoint.base_url} with model {self.endpoint.model!r} {self.stop}. "
                f"{self.report.counts['answered']:,} answers came before and are kept in {self.ledger.path}."
            ) from None
        if self.stop is not None:
            raise self.stop
        return self.report

    def _interrupt(self, number: int) -> None:
        if self.stop is not None:
            raise KeyboardInterrupt
        self.stop = KeyboardInterrupt()
        logger.warning("Interrupted: waiting for the requests under way, so that no answer is lost.")
        del number

    async def _work_or_stop(self) -> None:
        try:
            await self._work()
        except Exception as error:  # raised at the end of `run`: the other requests under way are paid for
            self.stop = self.stop or error

    async def _work(self) -> None:
        for request in self.requests:
            if self._stopped:
                return
            self.report.counts["requests"] += 1
            key = request.key(self.settings)
            while key in self.under_way:  # users whose requests are the same to the letter share the answer
                await self.under_way[key].wait()
            if self.ledger.answer(key) is not None:
                self.report.counts["reused"] += 1
            else:
                done = self.under_way.setdefault(key, asyncio.Event())
                try:
                    await self._until_answered(request, key)
                finally:
                    del self.under_way[key]
                    done.set()
            self.bar.update()
            self.bar.set_postfix(cost=f"${self.report.dollars:.2f}", failed=self.report.counts["failed"], refresh=False)

    @property
    def _stopped(self) -> bool:
        return self.stop is not None or self.report.out_of_money

    async def _until_answered(self, request: Request, key: str) -> None:
        """Asks until there is a usable answer, or notes why there is none."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((AgainError, _UselessError)),
            stop=stop_after_attempt(self.limits.max_attempts),
            wait=BACKOFF,  # also grows where the endpoint says Retry-After: 0
            sleep=self._sleep,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    await self._attempt(request, key)
        except (AgainError, _UselessError) as error:
            self._fail(request, key, error, f"{error} ({self.limits.max_attempts} attempts)")
        except (RejectedError, _RefusedError) as error:
            self._fail(request, key, error, str(error))
        except UnusableEndpointError as error:
            self.stop = self.stop or UnusableEndpointError(f"refuses every request: {error}")
        except _StoppedError:
            pass

    def _fail(self, request: Request, key: str, error: Exception, reason: str) -> None:
        """Notes that a request is given up; stops the run where the endpoint seems dead."""
        if self._stopped:
            return
        self.report.counts["failed"] += 1
        self.report.failures.append((request.user_id, request.prompt, reason))
        self.report.given_up.add(key)
        answered = self.report.counts.keys() & {"answered", "refused"}  # in this run
        if isinstance(error, AgainError) or not answered:  # otherwise the error concerns this request only
            self.failed_in_a_row += 1
        never_answered = not answered and not self.report.counts["reused"]
        if self.failed_in_a_row >= (FORBIDDEN if isinstance(error, ForbiddenError) and never_answered else DEAD):
            failed = f"{self.failed_in_a_row} requests failed in a row, the last with {reason}"
            self.stop = UnusableEndpointError(f"answers no request: {failed}")

    async def _attempt(self, request: Request, key: str) -> None:
        """Sends the request once and writes down what comes back."""
        most = self.price.of(*self._most_tokens(request))
        await self._reserve(most)
        try:
            await self._pace(request)
            if self.ledger.answer(key) is not None:  # another process got it while this one waited
                self.report.counts["reused"] += 1
                return
            useless = self.unusable.get(key, 0) + self.ledger.unusable(key)
            reply = await self.endpoint.ask(request, attempt=useless)
            self._record(request, key, reply)
        except AgainError as error:
            self.report.counts["again"] += 1
            if error.may_cost:
                self.ledger.record(key, "lost", text="", model="", detail=str(error), dollars=most)
                self.report.dollars += most
            if error.after is not None:  # holds for every request
                self.resume_at = max(self.resume_at, asyncio.get_running_loop().time() + error.after)
            raise
        finally:
            await self._release(most)

    def _record(self, request: Request, key: str, reply: Reply) -> None:
        """Writes the answer down; raises if it is of no use."""
        problem: Exception | None = None
        outcome: Outcome = "answered"
        if reply.refusal:
            problem, outcome = _RefusedError(f"refused: {reply.refusal[:200]}"), "refused"
        else:
            try:
                request.answer.model_validate_json(reply.text)
            except ValidationError as error:
                problem, outcome = _UselessError(_what_is_wrong(error, reply)), "invalid"
        most_prompt, most_completion = self._most_tokens(request)
        prompt_tokens, completion_tokens = reply.prompt_tokens, reply.completion_tokens
        if prompt_tokens is None or completion_tokens is None:
            self.report.counts["uncounted"] += 1
        dollars = self.price.of(
            most_prompt if prompt_tokens is None else prompt_tokens,
            most_completion if completion_tokens is None else completion_tokens,
        )
        self.ledger.record(
            key,
            outcome,
            text=reply.text,
            detail=str(problem or ""),
            model=reply.model,
            prompt_tokens=prompt_tokens or 0,
            completion_tokens=completion_tokens or 0,
            dollars=dollars,
        )
        self.report.counts[outcome] += 1
        self.failed_in_a_row = 0
        self.report.prompt_tokens += prompt_tokens or 0
        self.report.completion_tokens += completion_tokens or 0
        self.report.dollars += dollars
        if problem is not None:
            raise problem

    def _most_tokens(self, request: Request) -> tuple[int, int]:
        """The most tokens of prompt and answer that a request can be charged: a token is at least a byte."""
        size = sum(len(message["content"].encode("utf-8", "replace")) + 16 for message in request.messages)
        return size, self.endpoint.sampling.max_tokens

    async def _reserve(self, dollars: float) -> None:
        """Sets money aside; waits while requests under way may still give some back."""
        if self.limits.max_cost is None:
            return
        async with self.room:
            while self.report.dollars_in_all + self.reserved + dollars > self.limits.max_cost:
                if self.reserved <= 1e-12 or self._stopped:
                    self.report.out_of_money = True
                    self.room.notify_all()
                    raise _StoppedError
                await self.room.wait()
            self.reserved += dollars

    async def _release(self, dollars: float) -> None:
        if self.limits.max_cost is None:
            return
        async with self.room:
            self.reserved -= dollars
            self.room.notify_all()

    async def _pace(self, request: Request) -> None:
        """Waits until a request may leave."""
        await self._sleep(self.resume_at - asyncio.get_running_loop().time())
        if self.per_minute is not None:
            await self.per_minute.acquire()
        if self.tokens is not None:
            expected = request.characters / CHARACTERS_PER_TOKEN + self.endpoint.sampling.max_tokens / 2
            await self.tokens.acquire(min(expected, self.tokens.max_rate))
        if self._stopped:
            raise _StoppedError

    async def _sleep(self, seconds: float) -> None:
        """Waits, unless the run is stopped meanwhile."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not self._stopped and (left := until - loop.time()) > 0:
            await asyncio.sleep(min(left, 0.5))


class _UselessError(Exception):
    """An answer came that cannot be used."""


class _RefusedError(Exception):
    """The model refuses to answer."""


class _StoppedError(Exception):
    """The run stops before this request was sent."""


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """Lets requests leave evenly, a few at once at most."""
    if per_minute is None:
        return None
    at_once = max(1.0, per_minute * _BURST / 60)
    return AsyncLimiter(at_once, at_once * 60 / per_minute)


def _what_is_wrong(error: ValidationError, reply: Reply) -> str:
    if not reply.text.strip():
        return "empty answer"
    if reply.cut_off:
        return "cut off at max_tokens"
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
