"""The HTTP service of a recommender: `POST /v1/recommendations`, behind the same key, limits and counters."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp

from regen.serving.backend import QueueFullError
from regen.serving.gate import LOOPBACK
from regen.serving.interactions import RequestError
from regen.serving.metrics import Metrics
from regen.serving.recommender import Recommendation, Recommender, Turn
from regen.serving.requests import Health, RecommendationsRequest, RecommendationsResponse
from regen.serving.service import add_items, add_metrics, guarded, new_app, problems_of

EVENTS = {
    "description": "JSON, or with stream=true the events `items`, `piece` (text), `error` (detail) and, last, `done`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


class Places:
    """Requests of one recommender, one after the other, and as many that wait as there are places.

    Args:
        most: Places, with the one that is worked on.
    """

    def __init__(self, most: int) -> None:
        self.most, self.under_way = most, 0
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="recommend")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Holds a place.

        Raises:
            QueueFullError: If there is none.
        """
        if self.under_way >= self.most:
            raise QueueFullError(f"{self.under_way} requests are under way, of at most {self.most}.", after=1)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def run(self, work: Any, *args: Any) -> Any:
        """The result of a function that the worker calls."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, work, *args)


def create_recommendation_app(
    recommender: Recommender,
    *,
    places: int,
    key: str | None = None,
    timeout: float = 60.0,
    max_body_bytes: int = 2 << 20,
    hosts: Sequence[str] = LOOPBACK,
) -> ASGIApp:
    """The service; arguments as for `create_app`, and `places`: requests that are held at one time."""
    held = Places(places)
    metrics = Metrics(lambda: held.under_way)
    app = new_app("Recommendations from purchase histories.", recommender.run, recommender.data_fingerprint)
    problems = problems_of(400, 408, 413, 422, 429, 504)

    @app.post("/v1/recommendations", response_model=RecommendationsResponse, responses={200: EVENTS, **problems})
    async def recommendations(body: RecommendationsRequest) -> Response:
        """Recommends the next items and, if asked, writes about the first one."""
        if body.narrative and recommender.feature is None:
            raise RequestError("narrative=true: this model only recommends; one of task=converse writes, too.")
        answer = _Answer(recommender, body, held, metrics, timeout)
        if not body.stream:
            return await answer.whole()
        events = answer.events()
        first = await anext(events)  # whatever is refused is refused before the stream begins
        return StreamingResponse(_after(first, events), media_type="text/event-stream")

    @app.get("/health")
    async def health() -> Health:
        """Whether the service is there."""
        return Health(status="ok")

    add_items(app, recommender.items)
    add_metrics(app, metrics)
    return guarded(app, metrics, timeout=timeout, key=key, max_body_bytes=max_body_bytes, hosts=hosts)


class _Answer:
    """The answer to one request."""

    def __init__(
        self, recommender: Recommender, body: RecommendationsRequest, held: Places, metrics: Metrics, timeout: float
    ) -> None:
        self.recommender, self.body, self.held, self.metrics = recommender, body, held, metrics
        self.history = [purchase.interaction() for purchase in body.history]
        self.turns = [Turn(turn.item_id, turn.critique) for turn in body.turns]
        self.deadline = asyncio.get_running_loop().time() + timeout

    async def whole(self) -> Response:
        with self.held.taken():
            async with asyncio.timeout_at(self.deadline):
                found = await self._found()
                text = "".join([piece async for piece in self._pieces(found)]) if self.body.narrative else None
        return JSONResponse(
            RecommendationsResponse(
                model=self.recommender.run,
                data=self.recommender.data_fingerprint,
                items=[asdict(one) for one in found],  # type: ignore[misc]
                narrative=text,
            ).model_dump()
        )

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events; the places are free when the client leaves."""
        with self.held.taken():
            async with asyncio.timeout_at(self.deadline):
                found = await self._found()
            yield _event("items", {"items": [asdict(one) for one in found]})
            try:
                if self.body.narrative:
                    async for piece in self._pieces(found):
                        yield _event("piece", {"text": piece})
            except TimeoutError:
                yield _event("error", {"detail": "not written in time. Ask later."})
            yield _event("done", {})

    async def _found(self) -> list[Recommendation]:
        def recommend() -> list[Recommendation]:
            return self.recommender.recommend(self.history, self.body.critique, turns=self.turns, k=self.body.k)

        found: list[Recommendation] = await self.held.run(recommend)
        if not found:
            raise RequestError("every item was bought or criticised; there is nothing left to recommend.")
        return found

    async def _pieces(self, found: list[Recommendation]) -> AsyncIterator[str]:
        clock = asyncio.get_running_loop().time
        started = clock()
        pieces = self.recommender.tell(self.history, found[0].item_id, self.body.critique, turns=self.turns)
        while True:
            async with asyncio.timeout_at(self.deadline):
                piece = await self.held.run(next, pieces, None)
            if piece is None:
                break
            yield piece
        self.metrics.seconds.observe(clock() - started)
        self.metrics.narratives.labels(self.recommender.feature).inc()


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in rest:
        yield event


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
