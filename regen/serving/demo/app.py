"""The demo's app: the page, searches for users and items, and a stream of narratives from all models."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

import regen.analysis
from regen.data.tables import ITEM_FEATURES, nearest
from regen.serving import NarrativeModel, RequestError
from regen.serving.demo.guard import Guard
from regen.serving.demo.narrated_users import NarratedUsers
from regen.serving.interactions import TEXT_CHARACTERS
from regen.serving.requests import MOST_PURCHASES, Sent

PAGE = Path(__file__).parent / "page"
LOOK = Path(regen.analysis.__file__).with_name("look.css")  # colours and type of the report too
Models = Mapping[str, NarrativeModel]  # by encoder
Words = Annotated[str, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=100)]


@dataclass(frozen=True)
class Shown:
    """Models and data of a demo.

    Attributes:
        models: For each feature, the models that write it.
        users: Users of the training data.
        runs: Names of the runs.
        data: Fingerprint of the data.
    """

    models: Mapping[str, Models]
    users: NarratedUsers
    runs: Sequence[str]
    data: str


class Purchase(Sent):
    """An item of the data and its review."""

    item_id: str = Field(max_length=200)
    rating: float | None = None
    review_title: str | None = Field(None, max_length=TEXT_CHARACTERS)
    review: str | None = Field(None, max_length=TEXT_CHARACTERS)


class Asked(Sent):
    """A history to narrate, oldest first."""

    feature: str
    history: list[Purchase] = Field(min_length=1, max_length=MOST_PURCHASES, fail_fast=True)


def build_app(shown: Shown, *, hosts: Sequence[str]) -> FastAPI:
    """The app that compares models.

    Args:
        shown: Models and data.
        hosts: Allowed `Host` headers; others are refused, against DNS rebinding.
    """
    app = new_app(hosts)
    add_users(app, shown.users)
    limit = next(iter(next(iter(shown.models.values())).values())).spec.max_history
    one_at_a_time = anyio.CapacityLimiter(1)  # models share cores; requests take turns, piece by piece

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return {
            "features": [_feature(name, models) for name, models in shown.models.items()],
            "models": list(next(iter(shown.models.values()))),
            "history_limit": limit,
            "runs": shown.runs,
            "data": shown.data,
        }

    @app.get("/api/items")
    def items(query: Words = "", limit: Limit = 20) -> dict[str, Any]:
        known = next(iter(shown.models.values()))["both"].items
        found = known.search(query, len(known))
        return {"found": [_item(one) for one in found[:limit]], "total": len(found)}

    @app.post("/api/narratives")
    async def narratives(asked: Asked) -> StreamingResponse:
        if asked.feature not in shown.models:
            raise HTTPException(
                404, f"feature={asked.feature!r:.80}: not trained. {nearest(asked.feature[:80], list(shown.models))}"
            )
        if len(asked.history) > limit:
            raise HTTPException(422, f"The history has {len(asked.history):,} items; the models read at most {limit}.")
        history = [purchase.model_dump() for purchase in asked.history]
        events = narrate_side_by_side(shown.models[asked.feature], history, asked.feature)
        return await streamed(events, one_at_a_time)

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def new_app(hosts: Sequence[str]) -> FastAPI:
    """An app that serves the shared style only, with the demo's security headers; arguments as for `build_app`."""
    app = FastAPI(title="regen demo", openapi_url=None)  # FastAPI's documentation pages would load from a network
    app.add_middleware(Guard)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_exception_handler(RequestValidationError, _say_what_is_invalid)

    @app.get("/look.css")
    def look() -> FileResponse:
        return FileResponse(LOOK)

    return app


def add_users(app: FastAPI, known: NarratedUsers) -> None:
    """Adds the routes that search users and return their histories."""

    @app.get("/api/users")
    def users(query: Words = "", limit: Limit = 20) -> dict[str, Any]:
        found, total = known.search(query, limit)
        return {"found": found, "total": total}

    @app.get("/api/user")
    def user(user_id: str) -> dict[str, Any]:
        if user_id not in known:
            raise HTTPException(404, f"user_id={user_id!r:.80}: no user of these data has that id and narratives.")
        return known.open(user_id)


async def streamed(events: Iterator[dict[str, Any]], limiter: anyio.CapacityLimiter) -> StreamingResponse:
    """Streams events as lines of JSON. A `RequestError` of the first event becomes status 422.

    Args:
        events: Events, computed in a thread.
        limiter: Limits the number of threads.
    """

    async def next_line() -> str | None:
        event = await anyio.to_thread.run_sync(next, events, None, limiter=limiter)
        return None if event is None else json.dumps(event) + "\n"

    async def lines(line: str | None) -> AsyncIterator[str]:
        while line is not None:
            yield line
            line = await next_line()

    try:
        first = await next_line()
    except RequestError as error:
        raise HTTPException(422, str(error)) from None
    return StreamingResponse(lines(first), media_type="application/x-ndjson")


def narrate_side_by_side(
    models: Models, history: Sequence[Mapping[str, Any]], feature: str
) -> Iterator[dict[str, Any]]:
    """Narratives of all models about one history, interleaved.

    Yields:
        First `cf_shares`, CF's share of each interaction in `both`. Then the `confidence` and `unknown_items` of each
        `model`. Then each text, one `piece` an event, and None at its end.

    Raises:
        RequestError: At the first event, if the history cannot be read.
    """
    yield {"cf_shares": models["both"].cf_shares(history, feature=feature)}
    for name, model in models.items():
        prepared = model.prepare(history, feature=feature)
        yield {"model": name, "confidence": prepared.confidence, "unknown_items": prepared.unknown_items}
    writing = {name: model.stream(history, feature=feature) for name, model in models.items()}
    while writing:
        for name in list(writing):
            piece = next(writing[name], None)
            yield {"model": name, "piece": piece}
            if piece is None:
                del writing[name]


def withholds_review(models: Models, feature: str) -> bool:
    """Whether the final review is withheld from the models."""
    return bool(models["both"].spec.features[feature]["withhold_final_review"])


def _feature(name: str, models: Models) -> dict[str, Any]:
    return {
        "name": name,
        "title": name.replace("_", " "),
        "about_item": name in ITEM_FEATURES,
        "withholds_review": withholds_review(models, name),
    }


def _item(item: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(item).items() if name in ("item_id", "title", "category")}


async def _say_what_is_invalid(request: Request, error: Exception) -> Response:
    """One sentence about the first error, instead of FastAPI's list."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}."}, 422)
