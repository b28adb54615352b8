"""The backend inside this process: one thread decodes all rows together, and they come and go between its steps."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from itertools import count, islice
from queue import SimpleQueue
from typing import Self

from regen.generation.native_decoder import NativeDecoder, greedy_decoder
from regen.generation.prepared import Prepared
from regen.generation.row_decoder import RowDecoder, Token, row_bytes
from regen.serving.backend import Backend, BackendError, longest_row
from regen.serving.model import NarrativeModel

logger = logging.getLogger(__name__)
ENTERING = 8  # rows whose prefix is read between two steps; those that write wait for it


@dataclass(frozen=True)
class _Enter:
    key: int
    prepared: Prepared
    limit: int


@dataclass(frozen=True)
class _Leave:
    key: int


class TransformersBackend(Backend):
    """Decodes in a thread of this process.

    Args:
        model: Nothing else may decode with it while the backend runs.
        rows: The most narratives written at one time.
        queue: The most that wait for a row; more are refused.
    """

    def __init__(self, model: NarrativeModel, *, rows: int = 32, queue: int = 128) -> None:
        super().__init__(model, places=rows + queue)
        self.rows = rows
        self.length = longest_row(model)
        self.writing = 0  # rows at the last step
        self._orders: SimpleQueue[_Enter | _Leave | None] = SimpleQueue()
        self._keys = count()
        self._written: dict[int, asyncio.Queue[Token | BackendError]] = {}
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    async def __aenter__(self) -> Self:
        if self.model.soft_token_lm.fast_path.rows:
            cache = self.rows * row_bytes(self.model.soft_token_lm, self.length)
            logger.info("%d rows of %d positions, %.2f GiB when all are taken", self.rows, self.length, cache / 2**30)
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)
        await super().__aexit__()

    async def check(self) -> None:
        if not self._thread.is_alive():
            raise BackendError("the decoding thread has ended; start the service again.")

    async def _tokens(self, prepared: Prepared, *, limit: int) -> AsyncGenerator[int, None]:
        await self.check()
        key, written = next(self._keys), asyncio.Queue[Token | BackendError]()
        self._written[key] = written
        self._orders.put(_Enter(key, prepared, limit))
        try:
            while True:
                token = await written.get()
                if isinstance(token, BackendError):
                    raise token
                yield token.id
                if token.last:
                    return
        finally:
            del self._written[key]
            self._orders.put(_Leave(key))

    def _run(self) -> None:
        """The thread: takes orders, lets rows enter, writes a token of each, until it is told to stop."""
        waiting: dict[int, _Enter] = {}
        decoder = self._decoder()
        while self._take_orders(waiting, decoder):
            try:
                self._let_enter(waiting, decoder)
                self._tell(self._deliver, decoder.step())
            except Exception as error:  # whatever it is, it must not end the thread that everyone waits for
                logger.exception("decoding failed; its %d narratives are given up", len(decoder.keys) + len(waiting))
                self._tell(self._give_up, [*decoder.keys, *waiting], f"decoding failed: {error}")
                waiting.clear()
                decoder = self._decoder()
            self.writing = len(decoder.keys)
        self._tell(self._give_up, [*decoder.keys, *waiting], "the service is shutting down.")

    def _decoder(self) -> RowDecoder | NativeDecoder:
        model = self.model
        return greedy_decoder(model.soft_token_lm, slots=self.rows, length=self.length, stop_ids=model.stop_ids)

    def _take_orders(self, waiting: dict[int, _Enter], decoder: RowDecoder | NativeDecoder) -> bool:
        """Takes all orders there are, and waits for one where there is nothing to do; False if told to stop."""
        while not self._orders.empty() or not (waiting or decoder.keys):
            self.writing = len(decoder.keys)  # before it waits: the last rows may just have been given up
            match self._orders.get():
                case _Enter() as order:
                    waiting[order.key] = order
                case _Leave(key):
                    waiting.pop(key, None)
                    decoder.drop(key)
                case None:
                    return False
        return True

    def _let_enter(self, waiting: dict[int, _Enter], decoder: RowDecoder | NativeDecoder) -> None:
        entering = list(islice(waiting.values(), min(ENTERING, decoder.free)))
        if not entering:
            return
        batch = self.model.collate([one.prepared for one in entering])
        tokens = decoder.add(batch, [one.key for one in entering], [one.limit for one in entering])
        for one in entering:
            del waiting[one.key]
        self._tell(self._deliver, tokens)

    def _tell(self, deliver: Callable[..., None], *what: object) -> None:
        self._loop.call_soon_threadsafe(deliver, *what)

    def _deliver(self, tokens: list[Token]) -> None:
        for token in tokens:
            if token.key in self._written:  # else its reader has left meanwhile
                self._written[token.key].put_nowait(token)

    def _give_up(self, keys: list[int], reason: str) -> None:
        for key in keys:
            if key in self._written:
                self._written[key].put_nowait(BackendError(reason))
