"""The HTTP service of a narrative model, and the parts that it shares with that of a recommender."""

import logging
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regen.serving.answers import NarrativesAnswer, Wanted
from regen.serving.backend import Backend, BackendError, NarrativeBackend, QueueFullError
from regen.serving.gate import DOCS_FILES, LOOPBACK, OPEN, Gate
from regen.serving.interactions import RequestError
from regen.serving.items import Items
from regen.serving.metrics import Metrics
from regen.serving.requests import (
    IDENTIFIER,
    OF_HISTORY,
    OF_USER,
    Health,
    ItemsResponse,
    KnownItem,
    NarrativesResponse,
    OfUser,
    Problem,
    request_model,
)
from regen.serving.users import Users

logger = logging.getLogger(__name__)
MOST_ITEMS = 100  # in one search result
MESSAGE = 400  # characters of an error message
KEY = {"Key": {"type": "http", "scheme": "bearer"}}
EVENTS = {
    "description": "JSON, or with stream=true the events `piece` (narrative, text), `narrative` (all of one), `error` "
    "(narrative, detail) and, last, `done`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def create_app(
    backend: NarrativeBackend,
    *,
    users: Users | None = None,
    key: str | None = None,
    timeout: float = 60.0,
    max_body_bytes: int = 2 << 20,
    hosts: Sequence[str] = LOOPBACK,
) -> ASGIApp:
    """The app of the service.

    Args:
        backend: A backend that someone else starts and stops.
        users: Known users; without them every request has to contain a history.
        key: Clients have to send this key; None accepts all requests to one of `hosts`.
        timeout: Seconds for a request, from its whole body to the last piece sent; as many for the body to arrive.
        max_body_bytes: The most bytes of a request's body.
        hosts: Allowed `Host` headers of a service without a key. Other requests get 400, because a web page could
            reach this machine under its own name (DNS rebinding).
    """
    metrics = Metrics(lambda: backend.under_way)
    app = new_app("Narratives from purchase histories.", backend.model.spec.run, backend.model.data_fingerprint)
    _add_narratives(app, backend, users, metrics, timeout)
    add_shared_routes(app, backend, backend.model.items, metrics)
    return guarded(app, metrics, timeout=timeout, key=key, max_body_bytes=max_body_bytes, hosts=hosts)


def new_app(summary: str, run: str, data: str) -> FastAPI:
    """An app without routes.

    Args:
        summary: One line for the documentation page.
        run: Name of the model's run.
        data: Fingerprint of the model's data.
    """
    described = f"Model `{run}` on data `{data}`."
    return FastAPIOffline(title="regen", summary=summary, description=described, redoc_url=None, static_url=DOCS_FILES)


def guarded(
    app: FastAPI, metrics: Metrics, *, timeout: float, key: str | None, max_body_bytes: int, hosts: Sequence[str]
) -> ASGIApp:
    """Adds key, limits, error messages and counters to an app; arguments as for `create_app`."""
    _add_refusals(app, timeout)
    if key is not None:
        _tell_of_key(app)
    gate: ASGIApp = Gate(app, key=key, max_body_bytes=max_body_bytes, body_timeout=timeout)
    if key is None:
        gate = TrustedHostMiddleware(gate, allowed_hosts=list(hosts))
    return _Counted(gate, app, metrics)


def _add_narratives(
    app: FastAPI, backend: NarrativeBackend, users: Users | None, metrics: Metrics, timeout: float
) -> None:
    wanted_of: Any = request_model(backend.model.features, places=backend.places)
    problems = problems_of(400, 404, 408, 413, 422, 429, 503, 504)

    @app.post("/v1/narratives", response_model=NarrativesResponse, responses={200: EVENTS, **problems})
    async def narratives(body: wanted_of) -> Response:
        """Writes narratives for known users or given histories."""
        wanted = [_wanted(at, one, backend, users) for at, one in enumerate(body.narratives)]
        return NarrativesAnswer(backend, wanted, stream=body.stream, timeout=timeout, metrics=metrics)


def add_shared_routes(app: FastAPI, backend: Backend[Any], known: Items, metrics: Metrics) -> None:
    """The routes that both services have: health, the search among items, counters."""

    @app.get("/health", responses=problems_of(503))
    async def health() -> Health:
        """Whether the service can answer."""
        try:
            await backend.check()
        except BackendError as error:
            logger.warning("%s", error)
            raise HTTPException(503, "Nothing can be written now; the service's log says why.") from error
        return Health(status="ok")

    @app.get("/v1/items", responses=problems_of(422))
    def items(
        query: Annotated[str, Query(min_length=1, max_length=IDENTIFIER, description="Words or parts of words.")],
        limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = 20,
    ) -> ItemsResponse:
        """Items whose title, brand or category hold every word."""
        return ItemsResponse(items=[KnownItem(**vars(item)) for item in known.search(query, limit)])

    @app.get("/metrics", response_class=PlainTextResponse)
    def counters() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _wanted(at: int, one: Any, backend: NarrativeBackend, users: Users | None) -> Wanted:
    """Looks up the history of a known user, or checks that all item ids of a given history are known."""
    if isinstance(one, OfUser):
        if users is None:
            raise HTTPException(404, "This service knows no users: it was started without data=. Send a history.")
        history = users.history(one.user_id)
        if history is None:
            raise HTTPException(404, f"narratives[{at}].user_id: no user {one.user_id!r:.80} among {len(users):,}.")
        return Wanted(history, one.feature)
    for position, purchase in enumerate(one.history):
        if not (purchase.title or "").strip() and purchase.item_id not in backend.model.items:
            where = f"narratives[{at}].history[{position}]"
            raise HTTPException(404, f"{where}.item_id: no item {purchase.item_id!r:.80}. Give its title.")
    return Wanted([purchase.interaction() for purchase in one.history], one.feature)


def _add_refusals(app: FastAPI, timeout: float) -> None:
    def refuse(kind: type[Exception], status: int, message: str | None = None) -> None:
        @app.exception_handler(kind)
        async def answer(_: Request, error: Exception) -> Response:
            after = {"Retry-After": str(error.after)} if isinstance(error, QueueFullError) else None
            return _problem(status, message or str(error), after)

    refuse(RequestError, 422)
    refuse(QueueFullError, 429)
    refuse(BackendError, 503)
    refuse(TimeoutError, 504, f"not written within {timeout:g} s. Ask for fewer narratives, or later.")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        """The first error, without the values that were sent."""
        errors = error.errors()
        first = errors[0]
        where = ".".join(str(part) for part in first["loc"] if part not in (OF_USER, OF_HISTORY))
        more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
        return _problem(422, f"{where}: {first['msg'].removeprefix('Value error, ')}{more}")


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    told = detail[:MESSAGE].encode("utf-8", "replace").decode()  # lone surrogates cannot be encoded
    return JSONResponse(Problem(detail=told).model_dump(), status, headers)


def problems_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI descriptions of these statuses."""
    return {status: {"model": Problem} for status in statuses}


def _tell_of_key(app: FastAPI) -> None:
    """Adds the key that `Gate` asks for to the OpenAPI document."""
    document = app.openapi()
    document["components"]["securitySchemes"] = KEY
    for path in document["paths"].keys() - OPEN:
        for operation in document["paths"][path].values():
            operation["security"] = [{"Key": []}]
            operation["responses"]["401"] = {"description": "No key, or another one."}


class _Counted:
    """Counts requests by path and status, including those that the gate refuses."""

    def __init__(self, inner: ASGIApp, app: FastAPI, metrics: Metrics) -> None:
        self.inner = inner
        self.paths = frozenset(app.openapi()["paths"])
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.inner(scope, receive, counting if scope["type"] == "http" else send)
