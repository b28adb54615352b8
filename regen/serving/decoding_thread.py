"""A thread that runs one LM for many callers: all rows decode together, and rows enter and leave between steps."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from queue import SimpleQueue
from typing import Any, Self

from regen.data.batch import Rows
from regen.generation.native_decoder import NativeDecoder, greedy_decoder
from regen.generation.row_decoder import RowDecoder, Token, row_bytes
from regen.models.soft_token_lm import SoftTokenLM
from regen.serving.backend import Backend, BackendError, Row

logger = logging.getLogger(__name__)
TOGETHER = 8  # the most rows that enter, or calls that are made, between two steps; other rows wait for them


@dataclass(frozen=True)
class _Enter:
    key: int
    row: Any
    limit: int


@dataclass(frozen=True)
class _Call:
    key: int
    function: Callable[[Sequence[Any]], list[Any]]
    argument: Any


@dataclass(frozen=True)
class _Leave:
    key: int


class DecodingThread:
    """Decodes many texts together with one LM, and runs other work on the LM between two steps.

    Args:
        lm: The LM, in evaluation mode. Only this thread may run it.
        collate: Makes a batch of rows that `tokens` was given.
        rows: The most texts written at one time.
        length: The most positions of one row.
        stop_ids: Tokens that end a text.
    """

    def __init__(
        self,
        lm: SoftTokenLM,
        collate: Callable[[Sequence[Any]], Rows],
        *,
        rows: int,
        length: int,
        stop_ids: frozenset[int],
    ) -> None:
        self.rows = rows
        self.length = length
        self.writing = 0  # rows at the last step
        self._lm = lm
        self._collate = collate
        self._stop_ids = stop_ids
        self._orders: SimpleQueue[_Enter | _Call | _Leave | None] = SimpleQueue()
        self._keys = count()
        self._results: dict[int, asyncio.Queue[Any]] = {}
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    async def __aenter__(self) -> Self:
        if self._lm.fast_path.rows:
            cache = self.rows * row_bytes(self._lm, self.length)
            logger.info("%d rows of %d positions, %.2f GiB when all are taken", self.rows, self.length, cache / 2**30)
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)

    def check(self) -> None:
        """Checks that the thread runs.

        Raises:
            BackendError: If it has ended.
        """
        if not self._thread.is_alive():
            raise BackendError("the decoding thread has ended; start the service again.")

    async def tokens(self, row: Any, *, limit: int) -> AsyncGenerator[int, None]:
        """Token ids of a text as they are written, at most `limit`. Closing the generator gives the row to others.

        Raises:
            BackendError: If decoding fails.
        """
        with self._ordered(_Enter(next(self._keys), row, limit)) as written:
            while True:
                token = _checked(await written.get())
                yield token.id
                if token.last:
                    return

    async def call(self, function: Callable[[Sequence[Any]], list[Any]], argument: Any) -> Any:
        """Calls a function in this thread, between two steps, with all arguments that wait for it; returns one result.

        Args:
            function: Takes a list of arguments and returns a list of results.
            argument: One of the arguments.

        Raises:
            BackendError: If the call fails.
        """
        with self._ordered(_Call(next(self._keys), function, argument)) as results:
            return _checked(await results.get())

    @contextmanager
    def _ordered(self, order: _Enter | _Call) -> Iterator[asyncio.Queue[Any]]:
        """Gives an order to the thread and withdraws it afterwards; yields the queue of its results."""
        self.check()
        self._results[order.key] = results = asyncio.Queue[Any]()
        self._orders.put(order)
        try:
            yield results
        finally:
            del self._results[order.key]
            self._orders.put(_Leave(order.key))

    def _run(self) -> None:
        """The thread's loop, until it is told to stop."""
        waiting: dict[int, _Enter | _Call] = {}
        decoder = self._decoder()
        while self._take_orders(waiting, decoder):
            try:
                self._make_calls(waiting)
                self._let_enter(waiting, decoder)
                self._deliver_tokens(decoder.step())
            except Exception as error:  # any error: the thread must not end, because everyone waits for it
                logger.exception("decoding failed; its %d requests are given up", len(decoder.keys) + len(waiting))
                self._give_up([*decoder.keys, *waiting], f"decoding failed: {error}")
                waiting.clear()
                decoder = self._decoder()
            self.writing = len(decoder.keys)
        self._give_up([*decoder.keys, *waiting], "the service is shutting down.")

    def _decoder(self) -> RowDecoder | NativeDecoder:
        return greedy_decoder(self._lm, slots=self.rows, length=self.length, stop_ids=self._stop_ids)

    def _take_orders(self, waiting: dict[int, _Enter | _Call], decoder: RowDecoder | NativeDecoder) -> bool:
        """Takes all orders, and waits for one if there is nothing to do. False if the thread is told to stop."""
        while not self._orders.empty() or not (waiting or decoder.keys):
            self.writing = len(decoder.keys)  # before it waits: the last rows may just have left
            match self._orders.get():
                case _Leave(key):
                    waiting.pop(key, None)
                    decoder.drop(key)
                case None:
                    return False
                case order:
                    waiting[order.key] = order
        return True

    def _make_calls(self, waiting: dict[int, _Enter | _Call]) -> None:
        """Makes the first waiting call, together with others of the same function."""
        calls = [one for one in waiting.values() if isinstance(one, _Call)]
        if not calls:
            return
        same = [one for one in calls if one.function == calls[0].function][:TOGETHER]
        results = same[0].function([one.argument for one in same])
        self._deliver([(one.key, result) for one, result in zip(same, results, strict=True)])
        for one in same:
            del waiting[one.key]

    def _let_enter(self, waiting: dict[int, _Enter | _Call], decoder: RowDecoder | NativeDecoder) -> None:
        most = min(TOGETHER, decoder.free)
        entering = list(islice((one for one in waiting.values() if isinstance(one, _Enter)), most))
        if not entering:
            return
        batch = self._collate([one.row for one in entering])
        tokens = decoder.add(batch, [one.key for one in entering], [one.limit for one in entering])
        for one in entering:
            del waiting[one.key]
        self._deliver_tokens(tokens)

    def _deliver_tokens(self, tokens: list[Token]) -> None:
        self._deliver([(token.key, token) for token in tokens])

    def _give_up(self, keys: list[int], reason: str) -> None:
        self._deliver([(key, BackendError(reason)) for key in keys])

    def _deliver(self, results: list[tuple[int, Any]]) -> None:
        """Hands results to the event loop; those whose caller has left are dropped."""

        def put() -> None:
            for key, result in results:
                if key in self._results:
                    self._results[key].put_nowait(result)

        self._loop.call_soon_threadsafe(put)


def _checked(result: Any) -> Any:
    if isinstance(result, BackendError):
        raise result
    return result


class ThreadedBackend(Backend[Row]):
    """A backend that decodes in a thread of this process; the thread lives as long as the backend is open."""

    thread: DecodingThread

    async def __aenter__(self) -> Self:
        await self.thread.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.thread.__aexit__()
        await super().__aexit__()

    async def check(self) -> None:
        self.thread.check()
