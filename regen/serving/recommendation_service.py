"""The HTTP service of a recommender: `POST /v1/recommendations`, with the same key, limits and counters."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Send

from regen.serving.answers import Answer, send_event
from regen.serving.backend import BackendError
from regen.serving.gate import LOOPBACK
from regen.serving.interactions import RequestError
from regen.serving.metrics import Metrics
from regen.serving.recommender import NOTHING_LEFT, PreparedNarrative, Recommendation, Turn
from regen.serving.recommender_backend import RecommenderBackend
from regen.serving.requests import RecommendationsRequest, RecommendationsResponse
from regen.serving.service import add_shared_routes, guarded, new_app, problems_of

EVENTS = {
    "description": "JSON, or with stream=true the events `items`, `piece` (text), `error` (detail) and, last, `done`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def create_recommendation_app(
    backend: RecommenderBackend,
    *,
    key: str | None = None,
    timeout: float = 60.0,
    max_body_bytes: int = 2 << 20,
    hosts: Sequence[str] = LOOPBACK,
) -> ASGIApp:
    """The service; arguments as for `create_app`."""
    recommender = backend.recommender
    metrics = Metrics(lambda: backend.under_way)
    app = new_app("Recommendations from purchase histories.", recommender.run, recommender.data_fingerprint)
    problems = problems_of(400, 408, 413, 422, 429, 503, 504)

    @app.post("/v1/recommendations", response_model=RecommendationsResponse, responses={200: EVENTS, **problems})
    async def recommendations(body: RecommendationsRequest) -> Response:
        """Recommends the next items and, if asked, writes about the first one."""
        if body.narrative and recommender.feature is None:
            raise RequestError("narrative=true: this model only recommends. Use a run of task=converse for texts.")
        return RecommendationsAnswer(backend, body, stream=body.stream, timeout=timeout, metrics=metrics)

    add_shared_routes(app, backend, recommender.items, metrics)
    return guarded(app, metrics, timeout=timeout, key=key, max_body_bytes=max_body_bytes, hosts=hosts)


@dataclass(frozen=True)
class _Found:
    """Recommended items, and the narrative to write about the first one, if one was asked for."""

    items: list[Recommendation]
    narrative: PreparedNarrative | None


class RecommendationsAnswer(Answer[PreparedNarrative, _Found]):
    """The answer to one request.

    Args:
        backend: Ranks and writes.
        body: The request.
        **options: As for `Answer`.
    """

    def __init__(self, backend: RecommenderBackend, body: RecommendationsRequest, **options: Any) -> None:
        super().__init__(backend, 1, **options)
        self.ranker = backend
        self.asked = body

    async def prepare(self) -> _Found:
        body = self.asked
        history = [purchase.interaction() for purchase in body.history]
        turns = [Turn(turn.item_id, turn.critique) for turn in body.turns]
        prepared = await self.ranker.prepare(history, body.critique, turns)
        items = await self.ranker.rank(prepared, body.k)
        if not items:
            raise RequestError(NOTHING_LEFT)
        about = self.ranker.recommender.about(prepared, items[0].item_id) if body.narrative else None
        return _Found(items, about)

    async def whole(self, ready: _Found) -> Response:
        answer = RecommendationsResponse(
            model=self.ranker.recommender.run,
            data=self.ranker.recommender.data_fingerprint,
            items=[asdict(one) for one in ready.items],  # type: ignore[misc]
            narrative=None if ready.narrative is None else await self.write(ready.narrative, self._feature),
        )
        return JSONResponse(answer.model_dump())

    async def send_events(self, ready: _Found, send: Send) -> None:
        async def on_piece(piece: str) -> None:
            await send_event(send, "piece", {"text": piece})

        await send_event(send, "items", {"items": [asdict(one) for one in ready.items]})
        if ready.narrative is None:
            return
        try:
            await self.write(ready.narrative, self._feature, on_piece)
        except (BackendError, TimeoutError) as error:
            await send_event(send, "error", {"detail": self.why(error)})

    @property
    def _feature(self) -> str:
        return str(self.ranker.recommender.feature)
