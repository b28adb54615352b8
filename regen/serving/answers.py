"""Answers of the service: whole, or as server-sent events while texts are written."""

import asyncio
import json
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from regen.generation.prepared import Prepared
from regen.serving.backend import Backend, BackendError, NarrativeBackend, Row
from regen.serving.interactions import History
from regen.serving.metrics import Metrics
from regen.serving.requests import NarrativesResponse, WrittenNarrative

logger = logging.getLogger(__name__)
FAREWELL = 1.0  # seconds after the deadline in which a stream may say which texts are late
Ready = TypeVar("Ready")


class Answer(Response, Generic[Row, Ready]):
    """Holds places in the backend during a request, and frees them when the client leaves or stops reading.

    Args:
        backend: Writes the texts.
        texts: Places to hold.
        stream: Whether to send events while texts are written.
        timeout: Seconds for the whole request.
        metrics: Counters of the service.
    """

    def __init__(self, backend: Backend[Row], texts: int, *, stream: bool, timeout: float, metrics: Metrics) -> None:
        super().__init__()
        self.backend = backend
        self.texts = texts
        self.stream = stream
        self.timeout = timeout
        self.metrics = metrics
        self.started = self.deadline = 0.0  # on the event loop's clock, set when the answer is called

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers.

        Raises:
            QueueFullError, RequestError, BackendError, TimeoutError: Before anything was sent.
        """
        if not await _unless_left(receive, self._answer(scope, receive, send)):
            self.metrics.left.inc()

    @abstractmethod
    async def prepare(self) -> Ready:
        """What comes before any text is written. All refusals happen here, before anything is sent."""

    @abstractmethod
    async def whole(self, ready: Ready) -> Response:
        """The answer in one piece."""

    @abstractmethod
    async def send_events(self, ready: Ready, send: Send) -> None:
        """Sends the events of a stream, without the final `done`."""

    async def write(self, row: Row, feature: str, on_piece: Callable[[str], Awaitable[None]] | None = None) -> str:
        """Writes one text and counts it; `on_piece` is given each piece."""
        clock, text = asyncio.get_running_loop().time, ""
        async with aclosing(self.backend.stream(row, deadline=self.deadline)) as pieces:
            async for piece in pieces:
                if not text:
                    self.metrics.first.observe(clock() - self.started)
                text += piece
                if on_piece is not None:
                    await on_piece(piece)
        self.metrics.seconds.observe(clock() - self.started)
        self.metrics.narratives.labels(feature).inc()
        return text

    def why(self, error: Exception) -> str:
        """The detail of an `error` event."""
        return str(error) or f"not written within {self.timeout:g} s, {self.backend.under_way} narratives under way."

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.started = asyncio.get_running_loop().time()
        self.deadline = self.started + self.timeout
        with self.backend.admitted(self.texts):
            async with asyncio.timeout_at(self.deadline):
                ready = await self.prepare()
            if self.stream:
                await self._stream(ready, send)
                return
            answer = await self.whole(ready)
        await answer(scope, receive, send)  # the places are free by now, however slowly the client reads

    async def _stream(self, ready: Ready, send: Send) -> None:
        """Streams until the deadline. The server closes the connection of a stream without `done`."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        try:
            async with asyncio.timeout_at(self.deadline + FAREWELL):
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await self.send_events(ready, send)
                await send_event(send, "done", {}, last=True)
        except TimeoutError:
            logger.warning("A client did not read its stream within %g s; its connection is closed.", self.timeout)
            self.metrics.left.inc()


@dataclass(frozen=True)
class Wanted:
    """One narrative of a request."""

    history: History
    feature: str


class NarrativesAnswer(Answer[Prepared, list[Prepared]]):
    """The answer to a request for narratives.

    Args:
        backend: Writes the narratives.
        wanted: The narratives, in order.
        **options: As for `Answer`.
    """

    def __init__(self, backend: NarrativeBackend, wanted: Sequence[Wanted], **options: Any) -> None:
        super().__init__(backend, len(wanted), **options)
        self.narrator = backend
        self.wanted = wanted

    async def prepare(self) -> list[Prepared]:
        return [await self.narrator.prepare(one.history, feature=one.feature) for one in self.wanted]

    async def whole(self, ready: list[Prepared]) -> Response:
        tasks = [asyncio.ensure_future(self._narrative(one)) for one in ready]
        try:
            narratives = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        model = self.narrator.model
        answer = NarrativesResponse(model=model.spec.run, data=model.data_fingerprint, narratives=narratives)
        return JSONResponse(answer.model_dump())

    async def send_events(self, ready: list[Prepared], send: Send) -> None:
        async with asyncio.TaskGroup() as group:
            for at, one in enumerate(ready):
                group.create_task(self._send_one(at, one, send))

    async def _send_one(self, at: int, prepared: Prepared, send: Send) -> None:
        async def on_piece(piece: str) -> None:
            await send_event(send, "piece", {"narrative": at, "text": piece})

        try:
            narrative = await self._narrative(prepared, on_piece)
        except (BackendError, TimeoutError) as error:
            await send_event(send, "error", {"narrative": at, "detail": self.why(error)})
        else:
            await send_event(send, "narrative", {"narrative": at, **narrative.model_dump()})

    async def _narrative(
        self, prepared: Prepared, on_piece: Callable[[str], Awaitable[None]] | None = None
    ) -> WrittenNarrative:
        return WrittenNarrative(
            feature=prepared.feature,
            text=await self.write(prepared, prepared.feature, on_piece),
            confidence=prepared.confidence,
            unknown_items=list(prepared.unknown_items),
        )


async def send_event(send: Send, name: str, data: dict[str, object], *, last: bool = False) -> None:
    """Sends one server-sent event; `last` ends the response."""
    body = f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _unless_left(receive: Receive, work: Awaitable[None]) -> bool:
    """Does the work, and cancels it if the client leaves before its end. Returns whether it was done."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
