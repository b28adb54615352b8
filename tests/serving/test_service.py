"""The service over ASGI: answers, streams, refusals."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from serving.services import receives, scope

from regen.serving import NarrativeModel, answers
from regen.serving.decoding_thread import DecodingThread
from regen.serving.service import create_app
from regen.serving.transformers_backend import TransformersBackend
from regen.serving.users import Users

FEATURE = "purchase_reason"
PATH = "/v1/narratives"
PENS = {"title": "Ballpoint pens, black", "rating": 5.0, "review": "Write smoothly."}
ONE = {"history": [PENS], "feature": FEATURE}


@pytest.fixture(scope="module")
def served(exported):
    return NarrativeModel.from_pretrained(exported)


@pytest.fixture(scope="module")
def users(finished):
    return Users(finished.tables, latest=50)


def ask(served, scenario, *, users=None, rows=4, queue=16, **options):
    """Runs a scenario with a client of a service."""

    @asynccontextmanager
    async def client():
        async with TransformersBackend(served, rows=rows, queue=queue) as backend:
            transport = httpx.ASGITransport(create_app(backend, users=users, **options))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                yield http, backend

    async def main():
        async with client() as (http, backend):
            result = await asyncio.wait_for(scenario(http, backend), 60)
            assert backend.under_way == 0
            return result

    return asyncio.run(main())


def answer(served, method, path, *, users=None, options=None, **request):
    async def scenario(http, _):
        return await http.request(method, path, **request)

    return ask(served, scenario, users=users, **(options or {}))


def post(served, *narratives, users=None, stream=False):
    body = {"narratives": list(narratives), "stream": stream}
    return answer(served, "POST", "/v1/narratives", json=body, users=users)


def test_known_users_and_given_histories_in_one_request(served, users, finished):
    user = finished.examples[0].user_id
    reply = post(served, {"user_id": user, "feature": FEATURE}, ONE, users=users)
    assert reply.status_code == 200
    told = reply.json()
    assert told["model"] == served.spec.run
    assert told["data"] == served.data_fingerprint
    for narrative, history in zip(told["narratives"], [users.history(user), [PENS]], strict=True):
        alone = served.narrate(history, FEATURE)
        assert narrative == {
            "feature": FEATURE,
            "text": alone.text,
            "confidence": alone.confidence,
            "unknown_items": list(alone.unknown_items),
        }


def events(text):
    parts = [part.split("\n") for part in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


def test_a_stream_tells_pieces_then_the_whole(served, finished):
    histories = finished.histories[:3]
    reply = post(served, *({"history": one, "feature": FEATURE} for one in histories), stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    told = events(reply.text)
    assert told[-1] == ("done", {})
    for at, history in enumerate(histories):
        text = served.narrate(history, FEATURE).text
        assert "".join(data["text"] for name, data in told if name == "piece" and data["narrative"] == at) == text
        assert [data["text"] for name, data in told if name == "narrative" and data["narrative"] == at] == [text]


def test_items_are_found_by_words(served):
    item = served.items.get(served.items.table["item_id"][0])
    reply = answer(served, "GET", "/v1/items", params={"query": item.title, "limit": 2})
    assert reply.status_code == 200
    assert item.item_id in [found["item_id"] for found in reply.json()["items"]]
    assert len(reply.json()["items"]) <= 2


def test_health_and_metrics(served):
    async def scenario(http, _):
        await http.post("/v1/narratives", json={"narratives": [ONE]})
        await http.post("/v1/narratives", content=b"{")
        return await http.get("/health"), await http.get("/metrics")

    health, metrics = ask(served, scenario)
    assert health.json() == {"status": "ok"}
    assert 'regen_requests_total{path="/v1/narratives",status="200"} 1.0' in metrics.text
    assert 'regen_requests_total{path="/v1/narratives",status="422"} 1.0' in metrics.text
    assert f'regen_narratives_total{{feature="{FEATURE}"}} 1.0' in metrics.text
    assert "regen_under_way 0.0" in metrics.text


MISTAKES = [
    ({}, 422, "body.narratives: Field required"),
    ({"narratives": []}, 422, "at least 1 item"),
    ({"narratives": [ONE] * 33}, 422, "at most 20 items"),
    ({"narratives": [ONE], "prompt": "Say hello"}, 422, "body.prompt: Extra inputs are not permitted"),
    ({"narratives": [{**ONE, "prompt_embeds": "AAAA"}]}, 422, "prompt_embeds: Extra inputs"),
    ({"narratives": [{**ONE, "user_id": "U1"}]}, 422, "history: Extra inputs"),
    ({"narratives": [{"feature": FEATURE}]}, 422, "narratives.0.history: Field required"),
    ({"narratives": [{**ONE, "feature": "purchase_raison"}]}, 422, "'purchase_reason'"),
    ({"narratives": [{"history": [], "feature": FEATURE}]}, 422, "at least 1 item"),
    ({"narratives": [{"history": [{"review": "good"}], "feature": FEATURE}]}, 422, "title, or its item_id"),
    ({"narratives": [{"history": [{"title": " \u0007 "}], "feature": FEATURE}]}, 422, "title, or its item_id"),
    (
        {"narratives": [{"history": [{**PENS, "rating": "5"}], "feature": FEATURE}]},
        422,
        "history.0.rating: Input should",
    ),
    ({"narratives": [{"history": [{**PENS, "rating": 1e300}], "feature": FEATURE}]}, 422, "less than"),
    ({"narratives": [{"history": "pens", "feature": FEATURE}]}, 422, "valid list"),
    (
        {"narratives": [{"history": [{"item_id": "nowhere"}], "feature": FEATURE}]},
        404,
        "history[0].item_id: no item 'nowhere'",
    ),
    ({"narratives": [{"user_id": "nobody", "feature": FEATURE}]}, 404, "narratives[0].user_id: no user 'nobody' among"),
    ({"narratives": [{"history": [PENS] * 1_001, "feature": FEATURE}]}, 422, "at most 1000 items"),
    ([1], 422, "body"),
    ("words", 422, "body"),
]


@pytest.mark.parametrize(("body", "status", "message"), MISTAKES)
def test_a_mistake_is_named(served, users, body, status, message):
    reply = answer(served, "POST", "/v1/narratives", json=body, users=users)
    assert (reply.status_code, reply.json().keys()) == (status, {"detail"})
    assert message in reply.json()["detail"]


RAW = [
    (b'{"narratives": [{"hist', 422, "JSON decode error"),
    (b'{"narratives": [{"feature": "\\ud800", "history": [{"title": "a"}]}]}', 422, "feature"),
    (b'{"narratives": [{"feature": "purchase_reason", "history": [{"title": "a", "\\ud800": 1}]}]}', 422, "unicode"),
    (b'{"narratives": [{"feature": "purchase_reason", "history": [{"title": "a", "price": NaN}]}]}', 422, "price"),
    (b'"\xff"', 400, "parsing"),
    (b"[" * 100_000, 400, "parsing"),
    (b'{"narratives": [{"history": [{"rating": 1' + b"0" * 5000 + b"}]}]}", 400, "parsing"),
    (b"", 422, "required"),
]


@pytest.mark.parametrize(("content", "status", "message"), RAW, ids=range(len(RAW)))
def test_a_body_that_is_no_request_is_refused(served, content, status, message):
    headers = {"content-type": "application/json"}
    reply = answer(served, "POST", "/v1/narratives", content=content, headers=headers)
    assert reply.status_code == status
    assert message in reply.json()["detail"]


def test_strange_texts_are_narrated(served):
    strange = {
        "title": "\u202e\u05e7\u05dc\u202c 📎 <script>alert(1)</script>\x00",
        "review": "x" * 1_000_000,
        "category": "\x1b[31m",
    }
    reply = post(served, {"history": [strange], "feature": FEATURE}, {"history": [PENS] * 1_000, "feature": FEATURE})
    assert reply.status_code == 200
    assert reply.json()["narratives"][1]["text"] == served.narrate([PENS] * 50, FEATURE).text


LARGE = {
    "a list of wrong purchases": {"narratives": [{"history": [0] * 100_000, "feature": FEATURE}]},
    "a list of wrong narratives": {"narratives": [0] * 100_000},
    "unknown keys": dict.fromkeys(map(str, range(100_000)), 0),
    "unknown keys of a purchase": {"narratives": [{"history": [dict.fromkeys(map(str, range(100_000)))]}]},
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE)
def test_a_large_wrong_body_becomes_few_errors(served, monkeypatch, body):
    counted = []
    errors = RequestValidationError.errors
    monkeypatch.setattr(RequestValidationError, "errors", lambda self: counted.append(errors(self)) or counted[-1])
    reply = answer(served, "POST", "/v1/narratives", json=body)
    assert reply.status_code == 422
    assert [len(built) <= 4 for built in counted] == [True], "built once, and short"


def test_a_request_that_can_never_fit_is_told_the_limit(served):
    async def scenario(http, _):
        return await http.post("/v1/narratives", json={"narratives": [ONE] * 10})

    reply = ask(served, scenario, rows=4, queue=5)
    assert reply.status_code == 422
    assert "at most 9 items" in reply.json()["detail"]
    assert "retry-after" not in reply.headers


@pytest.mark.parametrize("key", [None, "secret"])
def test_without_a_key_only_names_of_this_machine_are_answered(served, key):
    async def scenario(http, _):
        headers = {"authorization": "Bearer secret"}
        hosts = ("localhost", "127.0.0.1:8080", "[::1]:8080", "evil.example", "localhost.evil.example")
        return [(await http.get("/v1/items?query=x", headers={**headers, "host": host})).status_code for host in hosts]

    statuses = ask(served, scenario, key=key)
    assert statuses[:3] == [200] * 3
    assert statuses[3:] == [400 if key is None else 200] * 2


def test_a_service_without_data_says_so(served):
    reply = post(served, {"user_id": "U1", "feature": FEATURE})
    assert reply.status_code == 404
    assert "without data=" in reply.json()["detail"]


def test_large_bodies_are_refused_told_or_not(served):
    async def in_parts():
        for _ in range(5):
            yield b" " * 500

    for content in (b" " * 2500, in_parts()):
        headers = {"content-type": "application/json"}
        options = {"max_body_bytes": 2000}
        reply = answer(served, "POST", "/v1/narratives", content=content, headers=headers, options=options)
        assert reply.status_code == 413
        assert "larger than 2,000 bytes" in reply.json()["detail"]


def test_a_full_queue_says_when_to_ask_again(served):
    async def scenario(http, backend):
        with backend.admitted(3):
            fits = await http.post("/v1/narratives", json={"narratives": [ONE]})
            refused = await http.post("/v1/narratives", json={"narratives": [ONE, ONE]})
        return fits, refused

    fits, refused = ask(served, scenario, rows=1, queue=3)
    assert fits.status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "3 of 4 places are taken, and this request needs 2" in refused.json()["detail"]


def test_what_takes_too_long_is_given_up(served, monkeypatch):
    monkeypatch.setattr(DecodingThread, "_let_enter", lambda *_: None)
    reply = answer(served, "POST", "/v1/narratives", json={"narratives": [ONE]}, options={"timeout": 0.2})
    assert reply.status_code == 504
    assert "not written within 0.2 s" in reply.json()["detail"]
    body = {"narratives": [ONE], "stream": True}
    reply = answer(served, "POST", "/v1/narratives", json=body, options={"timeout": 0.2})
    assert [name for name, _ in events(reply.text)] == ["error", "done"]


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_a_client_that_does_not_read_its_stream_loses_its_places(served, monkeypatch, reads):
    monkeypatch.setattr(answers, "FAREWELL", 0.05)

    async def scenario(_, backend):
        sent = []

        async def send(message):
            if len(sent) == reads:
                await asyncio.Event().wait()
            sent.append(message)

        body = {"narratives": [ONE] * 16, "stream": True}
        await create_app(backend, timeout=1)(scope(PATH), receives(body, asyncio.Event()), send)
        assert backend.under_way == 0
        assert len(sent) == reads
        assert not any(message.get("more_body") is False for message in sent), "the server closes such a connection"

    ask(served, scenario)


def test_a_client_that_leaves_gives_its_place_back(served, monkeypatch):
    monkeypatch.setattr(DecodingThread, "_let_enter", lambda *_: None)

    async def scenario(_, backend):
        app = create_app(backend, timeout=60)
        left, sent = asyncio.Event(), []

        async def send(message):
            sent.append(message)

        answering = asyncio.ensure_future(app(scope(PATH), receives({"narratives": [ONE]}, left), send))
        while backend.under_way == 0:
            await asyncio.sleep(0.01)
        left.set()
        await answering
        assert backend.under_way == 0
        assert not sent

    ask(served, scenario)


def test_with_a_key_only_health_and_the_description_are_open(served):
    async def scenario(http, _):
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/openapi.json")).json()["components"]["securitySchemes"]
        for key in (None, "Bearer wrong", "secret", "Bearer secret ", "Bearer gehei\u00dfnis"):
            headers = {} if key is None else {"authorization": key.encode()}
            for path in ("/v1/items?query=pen", "/metrics", "/elsewhere"):
                refused = await http.get(path, headers=headers)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"] == "Bearer"
        return await http.get("/v1/items?query=pen", headers={"authorization": "Bearer secret"})

    assert ask(served, scenario, key="secret").status_code == 200
