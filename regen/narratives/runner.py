"""Sends many requests concurrently, within limits of rate and money. Each answer is recorded when it arrives."""

import asyncio
import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field

from aiolimiter import AsyncLimiter
from pydantic import ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter
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
from regen.narratives.report import Report, RunLimits

logger = logging.getLogger(__name__)
DEAD = 64  # requests that fail in a row before the run gives up
FORBIDDEN = 8  # the same for status 403, if no request was ever answered
_BURST = 5.0  # a burst may have the requests of this many seconds
BACKOFF = wait_exponential_jitter(multiplier=0.5, max=60.0, jitter=0.5)


def ask_all(
    requests: Callable[[], Iterator[Request]],
    *,
    total: int,
    endpoint: Endpoint,
    ledger: Ledger,
    limits: RunLimits,
    name: str,
    unusable: Mapping[str, int] | None = None,
) -> Report:
    """Sends the requests that the ledger has no answer to.

    After an interrupt, requests under way are finished and recorded. A second interrupt stops at once.

    Args:
        requests: Returns an iterator of the requests.
        total: Number of requests, for the progress bar.
        endpoint: Where to send them.
        ledger: Stores the answers.
        limits: RunLimits of rate, attempts and money.
        name: Label of the progress bar.
        unusable: Number of unusable answers in another ledger, by key of the request. Their seeds are not used again.

    Raises:
        ValueError: If the endpoint refuses all requests, for instance because of a wrong key.
        KeyboardInterrupt: After an interrupt.
    """
    for client in ("httpx", "httpx2"):  # openai's HTTP client, by version; it logs every answer
        logging.getLogger(client).setLevel(logging.WARNING)
    run = _Run(requests(), total, endpoint, ledger, limits, name, unusable or {})
    if limits.max_cost is not None:  # includes the cost of earlier, interrupted runs
        keys = {request.key(run.settings) for request in requests()}
        run.report.dollars_before = sum(map(ledger.dollars, keys))
    return asyncio.run(run.run())


@dataclass
class _Run:
    requests: Iterator[Request]
    total: InitVar[int]
    endpoint: Endpoint
    ledger: Ledger
    limits: RunLimits
    name: InitVar[str]
    unusable: Mapping[str, int]
    report: Report = field(default_factory=Report)
    reserved: float = 0.0  # dollars
    room: asyncio.Condition = field(default_factory=asyncio.Condition)
    resume_at: float = 0.0
    under_way: dict[str, asyncio.Event] = field(default_factory=dict)
    stop: BaseException | None = None
    failed_in_a_row: int = 0

    def __post_init__(self, total: int, name: str) -> None:
        self.bar = tqdm(total=total, desc=name, unit="request")
        self.settings = self.endpoint.settings()
        self.price = self.limits.price or Price(0.0, 0.0)
        self.per_minute = _limiter(self.limits.requests_per_minute)
        tokens = self.limits.tokens_per_minute
        self.tokens = None if tokens is None else AsyncLimiter(tokens, 60.0)

    async def run(self) -> Report:
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in handled}
        try:
            for number in handled:
                loop.add_signal_handler(number, self._interrupt)
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

    def _interrupt(self) -> None:
        if self.stop is not None:
            raise KeyboardInterrupt
        self.stop = KeyboardInterrupt()
        logger.warning("Interrupted: waiting for the requests under way, so that no answer is lost.")

    async def _work_or_stop(self) -> None:
        try:
            await self._work()
        except Exception as error:  # raised at the end of `run`, so that requests under way are recorded
            self.stop = self.stop or error

    async def _work(self) -> None:
        for request in self.requests:
            if self._stopped:
                return
            self.report.counts["requests"] += 1
            key = request.key(self.settings)
            while key in self.under_way:  # identical requests share the answer
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
        """Repeats the request until it has a usable answer or fails."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((AgainError, _UselessError)),
            stop=stop_after_attempt(self.limits.max_attempts),
            wait=BACKOFF,  # grows even if the endpoint says Retry-After: 0
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
        """Records a failed request; stops the run if too many failed in a row."""
        if self._stopped:
            return
        self.report.counts["failed"] += 1
        self.report.failures.append((request.user_id, request.prompt, reason))
        self.report.given_up.add(key)
        answered = self.report.counts.keys() & {"answered", "refused"}  # in this run
        if isinstance(error, AgainError) or not answered:  # otherwise only this request is at fault
            self.failed_in_a_row += 1
        never_answered = not answered and not self.report.counts["reused"]
        if self.failed_in_a_row >= (FORBIDDEN if isinstance(error, ForbiddenError) and never_answered else DEAD):
            failed = f"{self.failed_in_a_row} requests failed in a row, the last with {reason}"
            self.stop = UnusableEndpointError(f"answers no request: {failed}")

    async def _attempt(self, request: Request, key: str) -> None:
        """Sends the request once and records the answer."""
        most = self.price.of(*self._most_tokens(request))
        await self._reserve(most)
        try:
            await self._pace(request)
            if self.ledger.answer(key) is not None:  # another process was faster
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
            if error.after is not None:  # applies to all requests
                self.resume_at = max(self.resume_at, asyncio.get_running_loop().time() + error.after)
            raise
        finally:
            await self._release(most)

    def _record(self, request: Request, key: str, reply: Reply) -> None:
        """Records the answer; raises if it is unusable."""
        problem: Exception | None = None
        outcome: Outcome = "answered"
        if reply.refusal:
            problem, outcome = _RefusedError(f"refused: {reply.refusal[:200]}"), "refused"
        else:
            try:
                request.read(reply.text)
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
        self.report.dollars += dollars
        if problem is not None:
            raise problem

    def _most_tokens(self, request: Request) -> tuple[int, int]:
        """Upper bound of the tokens of prompt and answer: a token has at least one byte."""
        size = sum(len(message["content"].encode("utf-8", "replace")) + 16 for message in request.messages)
        return size, self.endpoint.sampling.max_tokens

    async def _reserve(self, dollars: float) -> None:
        """Reserves money; waits while other requests may release some."""
        max_cost = math.inf if self.limits.max_cost is None else self.limits.max_cost
        async with self.room:
            while self.report.dollars_in_all + self.reserved + dollars > max_cost:
                if self.reserved <= 1e-12 or self._stopped:
                    self.report.out_of_money = True
                    self.room.notify_all()
                    raise _StoppedError
                await self.room.wait()
            self.reserved += dollars

    async def _release(self, dollars: float) -> None:
        async with self.room:
            self.reserved -= dollars
            self.room.notify_all()

    async def _pace(self, request: Request) -> None:
        """Waits until the rate limits allow another request."""
        await self._sleep(self.resume_at - asyncio.get_running_loop().time())
        if self.per_minute is not None:
            await self.per_minute.acquire()
        if self.tokens is not None:
            expected = request.characters / CHARACTERS_PER_TOKEN + self.endpoint.sampling.max_tokens / 2
            await self.tokens.acquire(min(expected, self.tokens.max_rate))
        if self._stopped:
            raise _StoppedError

    async def _sleep(self, seconds: float) -> None:
        """Sleeps until the time is over or the run stops."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not self._stopped and (left := until - loop.time()) > 0:
            await asyncio.sleep(min(left, 0.5))


class _UselessError(Exception):
    """The answer is unusable."""


class _RefusedError(Exception):
    """The model refuses to answer."""


class _StoppedError(Exception):
    """The run stopped before this request was sent."""


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """Spreads requests evenly over time, with short bursts."""
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
