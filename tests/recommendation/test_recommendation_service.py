"""`POST /v1/recommendations`: answers, streams, refusals, limits, many clients at a time, clients that leave."""

import asyncio
import json
import threading

import httpx
import pytest
from serving.services import receives, scope, service

from regen import Recommender
from regen.config.objects import compose
from regen.generation.row_decoder import RowDecoder
from regen.serving.decoding_thread import DecodingThread
from regen.serving.recommendation_service import create_recommendation_app
from regen.serving.recommender import Turn
from regen.serving.recommender_backend import RecommenderBackend
from regen.serving.server import recommendation_service, serve

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")


PATH = "/v1/recommendations"


def with_service(talker, scenario, *, rows=4, queue=4, **options):
    """Runs a scenario with a client of a service, its backend and its app."""

    async def main():
        async with RecommenderBackend(talker, rows=rows, queue=queue) as backend:
            app = create_recommendation_app(backend, **options)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                result = await asyncio.wait_for(scenario(http, backend, app), 60)
            assert backend.under_way == 0
            return result

    return asyncio.run(main())


@pytest.fixture
def ask(talker):
    """Posts a body, or gets a path, and gives the answer."""

    def asked(body=None, path=PATH, *, method="POST", headers=None, **options):
        async def scenario(http, *_):
            return await http.request(method, path, json=body, headers=headers)

        return with_service(talker, scenario, **options)

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
    full = ask({"history": history}, rows=1, queue=-1)
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    late = ask({"history": history, "narrative": True}, timeout=1e-6)
    assert late.status_code == 504


def test_items_health_and_counters_are_there(ask):
    assert ask(path="/health", method="GET").json() == {"status": "ok"}
    assert ask(path="/v1/items?query=a", method="GET").json()["items"]
    assert "regen_under_way" in ask(path="/metrics", method="GET").text


def conversations(talker):
    """Requests of different lengths, with and without turns and narratives."""
    items = talker.items.table["item_id"].to_list()
    return [
        {
            "history": [{"item_id": item} for item in items[at : at + 1 + at % 3]],
            "turns": [{"item_id": items[20 + at], "critique": "I'd rather have a cheaper one."}] * (at % 2),
            "k": 3 + at,
            "narrative": at % 4 > 0,
        }
        for at in range(8)
    ]


def test_many_clients_get_what_each_would_get_alone(talker, monkeypatch):
    bodies, ranked, written = conversations(talker), [], []
    alone = []
    for body in bodies:
        turns = [Turn(**turn) for turn in body["turns"]]
        found = talker.recommend(body["history"], turns=turns, k=body["k"])
        text = "".join(talker.tell(body["history"], found[0].item_id, turns=turns)) if body["narrative"] else None
        alone.append(([one.item_id for one in found], text))
    rank, step = talker.rank, RowDecoder.step
    monkeypatch.setattr(talker, "rank", lambda asked: ranked.append(len(asked)) or rank(asked))
    monkeypatch.setattr(RowDecoder, "step", lambda decoder: written.append(len(decoder.keys)) or step(decoder))

    async def scenario(http, backend, _):
        holding = threading.Event()
        held = asyncio.ensure_future(backend.thread.call(lambda rows: [holding.wait(20)] * len(rows), None))
        asking = [asyncio.ensure_future(http.post(PATH, json=body)) for body in bodies]
        while len(backend.thread._results) <= len(bodies):  # until all wait for the thread
            await asyncio.sleep(0.01)
        holding.set()
        await held
        return await asyncio.gather(*asking)

    answers = [reply.json() for reply in with_service(talker, scenario)]
    assert [([one["item_id"] for one in answer["items"]], answer["narrative"]) for answer in answers] == alone
    assert max(ranked) == len(bodies), "waiting requests are ranked in one pass"
    assert max(written) > 1, "narratives are decoded together"


@pytest.mark.parametrize("stage", ["rank", "write"])
def test_a_client_that_leaves_a_whole_answer_gives_its_place_back(talker, history, monkeypatch, stage):
    name = "_make_calls" if stage == "rank" else "_let_enter"
    monkeypatch.setattr(DecodingThread, name, lambda *_: None)

    async def scenario(http, backend, app):
        left, sent = asyncio.Event(), []

        async def send(message):
            sent.append(message)

        body = {"history": history, "narrative": True}
        answering = asyncio.ensure_future(app(scope(PATH), receives(body, left), send))
        while backend.under_way == 0:
            await asyncio.sleep(0.01)
        left.set()
        await answering
        assert backend.under_way == 0
        assert not sent
        return await http.get("/metrics")

    assert "regen_clients_left_total 1.0" in with_service(talker, scenario).text


def test_a_conversation_longer_than_a_row_is_written_alone(ask, talker, history):
    turn = {"item_id": talker.items.table["item_id"][9], "critique": "cheaper please " * 30}
    turns = [turn] * 5
    backend = RecommenderBackend(talker)
    narrative = talker.about(talker.prepare(history, turns=[Turn(**one) for one in turns]), turn["item_id"])
    assert narrative.prefix + talker.max_new_tokens > backend.thread.length
    answer = ask({"history": history, "turns": turns, "narrative": True}).json()
    assert answer["narrative"] == talker.converse(history, turns=[Turn(**one) for one in turns]).narrative


def test_the_weights_are_packed_and_the_answers_stay(cells, talker, history):
    backend, _ = recommendation_service(compose([f"checkpoint={cells[1]}"], root="serve"), {})
    packed = backend.recommender
    forwards = [type(vars(layer).get("forward")).__name__ for layer in packed.soft_token_lm.lm.modules()]
    assert forwards.count("PackedLinear") > 10
    bare, served = (one.recommend(history, k=20) for one in (talker, packed))
    assert [one.item_id for one in served] == [one.item_id for one in bare]
    assert [one.score for one in served] == pytest.approx([one.score for one in bare], rel=1e-5, abs=1e-5)
    assert packed.converse(history).narrative == talker.converse(history).narrative


def test_serve_takes_the_folder_of_a_run(cells, caplog):
    caplog.set_level("INFO")
    serve(compose([f"checkpoint={cells[1]}", "dry_run=true"], root="serve"))
    assert "start first: nothing" in caplog.text
    for option, says in (("data=x", "data=x belongs to"), ("backend=vllm", "served in this process")):
        with pytest.raises(ValueError, match=says):
            serve(compose([f"checkpoint={cells[1]}", option], root="serve"))


@pytest.mark.slow
@pytest.mark.parametrize("exported", [False, True], ids=["run", "exported"])
def test_the_command_serves_a_recommender(cells, tmp_path, exported):
    folder = Recommender.from_run(cells[0]).save_pretrained(tmp_path / "model") if exported else cells[0]
    with service(tmp_path, folder) as served:
        items = httpx.get(f"{served.url}/v1/items?query=a", timeout=60).json()["items"]
        body = {"history": [{"item_id": items[0]["item_id"]}], "narrative": True, "k": 3}
        answer = httpx.post(f"{served.url}{PATH}", json=body, timeout=60).json()
        assert len(answer["items"]) == 3
        assert answer["narrative"]
    assert "Traceback" not in "".join(served.said)
