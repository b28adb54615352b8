"""The demo of a run of `task=converse`: recommended items and narratives, turn by turn."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import Field

from regen.data.critiques import LONGEST, critique, named
from regen.serving import RequestError
from regen.serving.demo.app import PAGE, add_users, new_app, streamed
from regen.serving.demo.narrated_users import NarratedUsers
from regen.serving.recommender import NOTHING_LEFT, Recommender, Turn
from regen.serving.requests import MOST_PURCHASES, MOST_TURNS, Sent, SentTurn

SHOWN = 5  # items in a turn
CONSIDERED = 50  # items ranked first, from which critiques are suggested
SUGGESTED = 3  # critiques in a turn
ATTRIBUTES = ("item_id", "title", "brand", "category", "price")


class Asked(Sent):
    """A history of item ids, oldest first, and the turns so far."""

    history: list[str] = Field(min_length=1, max_length=MOST_PURCHASES, fail_fast=True)
    turns: list[SentTurn] = Field([], max_length=MOST_TURNS, fail_fast=True)


def build_conversation_app(recommender: Recommender, users: NarratedUsers, *, hosts: Sequence[str]) -> FastAPI:
    """The app of the page.

    Args:
        recommender: A model of `task=converse`.
        users: Users of its data.
        hosts: As for `build_app`.
    """
    app = new_app(hosts)
    one_at_a_time = anyio.CapacityLimiter(1)
    add_users(app, users)

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return {"run": recommender.run, "data": recommender.data_fingerprint, "longest": LONGEST}

    @app.post("/api/converse")
    async def converse(asked: Asked) -> StreamingResponse:
        return await streamed(conversation_events(recommender, asked), one_at_a_time)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(PAGE / "conversation.html")

    app.mount("/", StaticFiles(directory=PAGE))
    return app


def conversation_events(recommender: Recommender, asked: Asked) -> Iterator[dict[str, Any]]:
    """One turn of a conversation.

    Yields:
        First `items`, best first, and `suggested` critiques of the first item. Then the narrative about it, one `piece`
        an event, and None at the end.

    Raises:
        RequestError: At the first event, if the history or the turns cannot be read.
    """
    history = [{"item_id": item} for item in asked.history]
    turns = [Turn(turn.item_id, turn.critique) for turn in asked.turns]
    found = [recommender.items.get(one.item_id) for one in recommender.recommend(history, turns=turns, k=CONSIDERED)]
    items = [{name: asdict(one)[name] for name in ATTRIBUTES} for one in found if one is not None]
    if not items:
        raise RequestError(NOTHING_LEFT)
    yield {"items": items[:SHOWN], "suggested": suggested(items) if recommender.reads_critiques else []}
    for piece in recommender.tell(history, items[0]["item_id"], turns=turns):
        yield {"piece": piece}
    yield {"piece": None}


def suggested(items: Sequence[dict[str, Any]]) -> list[str]:
    """Critiques of the first item that ask for one of the others, each about different kinds of attributes."""
    found: dict[frozenset[str], str] = {}
    for other in items[1:]:
        if text := critique(items[0], other):
            found.setdefault(frozenset(named(items[0], other)), text)
    return list(found.values())[:SUGGESTED]
