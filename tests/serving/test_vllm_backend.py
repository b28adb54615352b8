"""The same texts with the LM in a vLLM server; clear words when it is not there or dies."""

import asyncio
import os
from contextlib import aclosing

import httpx
import pytest
from evaluation.scripted_vllm import DONE, ScriptedVLLM, said

from regen.serving import NarrativeModel
from regen.serving.backend import BackendError
from regen.serving.service import create_app
from regen.serving.vllm_backend import VLLMBackend

FEATURE = "purchase_reason"
URL, CHECKPOINT = os.environ.get("REGEN_TEST_VLLM"), os.environ.get("REGEN_TEST_CHECKPOINT")
ONE = {"history": [{"title": "Ballpoint pens, black"}], "feature": FEATURE}


@pytest.fixture(scope="module")
def served(exported):
    return NarrativeModel.from_pretrained(exported)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        if not URL:
            patch.setenv("REGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def with_backend(served, server, scenario):
    async def main():
        backend = VLLMBackend(served, base_url=server.url, timeout=10)
        server.name = backend.needs.rpartition("/")[2]
        async with backend:
            return await asyncio.wait_for(scenario(backend), 60)

    return asyncio.run(main())


async def posted(backend, *, stream=False):
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(backend)), base_url="http://localhost"
    ) as http:
        reply = await http.post("/v1/narratives", json={"narratives": [ONE], "stream": stream})
        return reply, await http.get("/health")


def test_tokens_of_the_server_become_text(served):
    ids = served.decoding.tokenizer("they like smooth pens", add_special_tokens=False)["input_ids"]
    with ScriptedVLLM([*map(said, ids), said(*served.decoding.stop_ids), DONE]) as server:
        reply, health = with_backend(served, server, posted)
    assert reply.json()["narratives"][0]["text"] == "they like smooth pens"
    assert health.status_code == 200
    assert server.bodies[0]["max_tokens"] == served.decoding.max_new_tokens


def test_a_server_that_dies_in_the_middle_is_told_and_the_service_stays_up(served):
    word = served.decoding.tokenizer("pens and more pens", add_special_tokens=False)["input_ids"]
    with ScriptedVLLM(map(said, word)) as server:
        reply, _ = with_backend(served, server, posted)
        streamed, health = with_backend(served, server, lambda backend: posted(backend, stream=True))
    assert reply.status_code == 503
    assert "stopped in the middle" in reply.json()["detail"]
    assert "event: piece" in streamed.text
    assert "event: error" in streamed.text
    assert health.status_code == 200


def test_a_server_that_goes_away_makes_health_fail(served):
    async def scenario(backend):
        await asyncio.to_thread(server.__exit__)
        return await posted(backend)

    server = ScriptedVLLM()
    reply, health = with_backend(served, server, scenario)
    assert (reply.status_code, health.status_code) == (503, 503)
    assert "no vLLM" in reply.json()["detail"] or "did not go on" in reply.json()["detail"]
    assert health.json()["detail"] == "Nothing can be written now; the service's log says why."


def test_another_model_or_too_little_room_is_refused_with_the_command(served):
    async def enter(name, positions):
        backend = VLLMBackend(served, base_url=server.url)
        server.name, server.positions = name or backend.needs.rpartition("/")[2], positions
        async with backend:
            pass

    with ScriptedVLLM() as server:
        with pytest.raises(BackendError, match=r"serves smollm2, not .*make llm-server MODEL="):
            asyncio.run(enter("smollm2", 512))
        with pytest.raises(BackendError, match=f"max_model_len={served.longest_row}"):
            asyncio.run(enter(None, 8))


@pytest.mark.slow
@pytest.mark.skipif(not (URL and CHECKPOINT), reason="set REGEN_TEST_VLLM and REGEN_TEST_CHECKPOINT")
def test_a_real_server_writes_what_this_process_writes():
    model = NarrativeModel.from_pretrained(CHECKPOINT)
    items = model.items.table.filter(model.items.table["title"].is_not_null())["item_id"].to_list()
    histories = [[{"item_id": item} for item in items[at : at + 2 + at % 7]] for at in range(0, 96, 4)]
    feature = model.features[0]
    here = [narrative.text for narrative in model.narrate(histories, feature)]

    async def text_of(backend, history):
        prepared = await backend.prepare(history, feature=feature)
        async with aclosing(backend.stream(prepared)) as pieces:
            return "".join([piece async for piece in pieces])

    async def there():
        async with VLLMBackend(model, base_url=URL, timeout=300) as backend:
            return await asyncio.gather(*(text_of(backend, history) for history in histories))

    assert asyncio.run(there()) == here
    assert len(set(here)) > 4
