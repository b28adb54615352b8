"""`POST /v1/recommendations`: answers, streams, refusals, limits."""

import asyncio
import json

import httpx
import pytest

from regen.config.objects import compose
from regen.serving.recommendation_service import create_recommendation_app
from regen.serving.recommender import Turn
from regen.serving.server import serve

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")


@pytest.fixture
def ask(talker):
    """Posts a body, or gets a path, and gives the answer."""

    def asked(body=None, path="/v1/recommendations", *, method="POST", headers=None, **options):
        async def main():
            app = create_recommendation_app(talker, **{"places": 4, **options})
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.request(method, path, json=body, headers=headers)

        return asyncio.run(main())

    return asked


@pytest.fixture
def history(talker):
    return [{"item_id": item} for item in talker.items.table["item_id"][:2]]


def test_it_answers_as_the_library_does(ask, talker, history):
    turns = [{"item_id": talker.items.table["item_id"][9], "critique": "I'd rather have a cheaper one."}]
    answer = ask({"history": history, "turns": turns, "k": 3, "narrative": True}).json()
    reply = talker.converse(history, turns=[Turn(**turns[0])], k=3)
    assert [one["item_id"] for one in answer["items"]] == [one.item_id for one in reply.recommendations]
    assert answer["narrative"] == reply.narrative
    assert answer["model"].startswith("next_item+product_endorsement-both")
    assert ask({"history": history}).json()["narrative"] is None
    assert len(ask({"history": history}).json()["items"]) == 10


def test_a_stream_begins_with_the_items(ask, talker, history):
    answer = ask({"history": history, "narrative": True, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\ndata: ") for event in answer.text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in events]
    assert names[0] == "items"
    assert names[-1] == "done"
    text = "".join(json.loads(data)["text"] for name, data in events if name == "event: piece")
    assert text == talker.converse(history).narrative


BAD = {
    "no history": ({}, "history: Field required"),
    "an empty history": ({"history": []}, "history: List should have at least 1 item"),
    "an unknown key": ({"history": [{"title": "Pen"}], "hystory": 1}, "Extra inputs are not permitted"),
    "too many": ({"history": [{"title": "Pen"}], "k": 101}, "k: Input should be less than or equal to 100"),
    "a long critique": ({"history": [{"title": "Pen"}], "critique": "x" * 501}, "critique: String should have at most 500"),
    "an unknown item in a turn": (
        {"history": [{"title": "Pen"}], "turns": [{"item_id": "zz", "critique": "No."}]}, "item_id='zz': the catalogue has no such item"),
    "an unknown item without a title": ({"history": [{"item_id": "zz"}]}, "Give the item's title"),
    "too many turns": ({"history": [{"title": "Pen"}], "turns": [{"item_id": "a", "critique": "b"}] * 51}, "turns: List should have at most 50"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_named_before_anything_is_sent(ask, kind, stream):
    body, says = BAD[kind]
    answer = ask({**body, "stream": stream})
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


def test_limits_and_keys_are_those_of_the_narratives(ask, history):
    assert ask({"history": history}, key="secret").status_code == 401
    assert ask({"history": history}, key="secret", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert ask({"history": history}, max_body_bytes=10).status_code == 413
    assert ask({"history": history}, headers={"Host": "elsewhere"}).status_code == 400
    full = ask({"history": history}, places=0)
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    late = ask({"history": history, "narrative": True}, timeout=1e-6)
    assert late.status_code == 504


def test_items_health_and_counters_are_there(ask):
    assert ask(path="/health", method="GET").json() == {"status": "ok"}
    assert ask(path="/v1/items?query=a", method="GET").json()["items"]
    assert "regen_under_way" in ask(path="/metrics", method="GET").text


def test_serve_takes_the_folder_of_a_run(cells, caplog):
    caplog.set_level("INFO")
    serve(compose([f"checkpoint={cells[1]}", "dry_run=true"], root="serve"))
    assert "start first: nothing" in caplog.text
    for option, says in (("data=x", "data=x belongs to"), ("backend=vllm", "served in this process")):
        with pytest.raises(ValueError, match=says):
            serve(compose([f"checkpoint={cells[1]}", option], root="serve"))
