"""The answer to a request for narratives: whole, or as server-sent events while they are written."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from regen.generation.prepared import Prepared
from regen.serving.backend import Backend, BackendError
from regen.serving.metrics import Metrics
from regen.serving.model import History
from regen.serving.requests import NarrativesResponse, WrittenNarrative

logger = logging.getLogger(__name__)
FAREWELL = 1.0  # seconds after the deadline in which a stream may say which narratives are late


@dataclass(frozen=True)
class Wanted:
    """One narrative of a request."""

    history: History
    feature: str


class NarrativesAnswer(Response):
    """Holds places in the backend while narratives are written, and frees them when the client leaves or stops reading.

    Args:
        backend: Writes the narratives.
        wanted: The narratives, in order.
        stream: Whether to send pieces as they are written.
        timeout: Seconds for writing and streaming all narratives.
        metrics: Counts and times narratives.
    """

    def __init__(
        self, backend: Backend, wanted: Sequence[Wanted], *, stream: bool, timeout: float, metrics: Metrics
    ) -> None:
        super().__init__()
        self.backend = backend
        self.wanted = wanted
        self.stream = stream
        self.timeout = timeout
        self.metrics = metrics
        self.started = self.deadline = 0.0  # on the event loop's clock, once it is called

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers.

        Raises:
            QueueFullError, RequestError, BackendError, TimeoutError: Before anything was sent.
        """
        if not await _while_there(receive, self._answer(scope, receive, send)):
            self.metrics.left.inc()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self.started = clock()
        self.deadline = self.started + self.timeout
        with self.backend.admitted(len(self.wanted)):
            async with asyncio.timeout_at(self.deadline):
                prepared = [await self.backend.prepare(one.history, feature=one.feature) for one in self.wanted]
            if self.stream:
                await self._send_in_time(prepared, send)
                return
            answer = await self._whole(prepared)
        await answer(scope, receive, send)  # its places are free by now, however slowly the client reads

    async def _whole(self, prepared: Sequence[Prepared]) -> Response:
        tasks = [asyncio.ensure_future(self._written(at, one, None)) for at, one in enumerate(prepared)]
        try:
            narratives = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        spec = self.backend.model.spec
        answer = NarrativesResponse(model=spec.run, data=self.backend.model.data_fingerprint, narratives=narratives)
        return JSONResponse(answer.model_dump())

    async def _send_in_time(self, prepared: Sequence[Prepared], send: Send) -> None:
        """Streams until the deadline; an answer left incomplete makes the server close the connection."""
        try:
            async with asyncio.timeout_at(self.deadline + FAREWELL):
                await self._send_events(prepared, send)
        except TimeoutError:
            logger.warning("A client did not read its stream within %g s; its connection is closed.", self.timeout)
            self.metrics.left.inc()

    async def _send_events(self, prepared: Sequence[Prepared], send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with asyncio.TaskGroup() as group:
            for at, one in enumerate(prepared):
                group.create_task(self._send_one(at, one, send))
        await _send_event(send, "done", {}, last=True)

    async def _send_one(self, at: int, prepared: Prepared, send: Send) -> None:
        try:
            narrative = await self._written(at, prepared, send)
        except (BackendError, TimeoutError) as error:
            await _send_event(send, "error", {"narrative": at, "detail": str(error) or self.too_late()})
        else:
            await _send_event(send, "narrative", {"narrative": at, **narrative.model_dump()})

    async def _written(self, at: int, prepared: Prepared, send: Send | None) -> WrittenNarrative:
        clock, text = asyncio.get_running_loop().time, ""
        async with aclosing(self.backend.stream(prepared, deadline=self.deadline)) as pieces:
            async for piece in pieces:
                if not text:
                    self.metrics.first.observe(clock() - self.started)
                text += piece
                if send is not None:
                    await _send_event(send, "piece", {"narrative": at, "text": piece})
        self.metrics.seconds.observe(clock() - self.started)
        self.metrics.narratives.labels(prepared.feature).inc()
        return WrittenNarrative(
            feature=prepared.feature,
            text=text,
            confidence=prepared.confidence,
            unknown_items=list(prepared.unknown_items),
        )

    def too_late(self) -> str:
        return f"not written within {self.timeout:g} s, {self.backend.under_way} narratives under way."


async def _send_event(send: Send, name: str, data: dict[str, object], *, last: bool = False) -> None:
    body = f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _while_there(receive: Receive, work: Awaitable[None]) -> bool:
    """Does the work unless the client leaves before its end; whether it was done."""
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
