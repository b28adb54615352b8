"""What the client of a vLLM server sends, what it reads, and how it says what went wrong."""

import asyncio
import base64
import io

import pytest
import torch
from scripted_vllm import DONE, ScriptedVLLM, said

from regen.generation.vllm_client import VLLMClient, VLLMError

EMBEDS = torch.arange(12.0).reshape(3, 4)


def completed(url, *, name="tiny", limit=5):
    async def ask():
        async with VLLMClient(url, name=name, timeout=5) as client:
            return await client.complete(EMBEDS, limit=limit, stop_ids={7, 2})

    return asyncio.run(ask())


def checked(url, *, name="tiny", positions=0):
    async def ask():
        async with VLLMClient(url, name=name, timeout=5) as client:
            await client.check(positions=positions)

    asyncio.run(ask())


def test_tokens_come_as_the_server_writes_them_and_embeddings_arrive_whole():
    with ScriptedVLLM([said(3), said(4, 5), said(), said(7), DONE]) as server:
        assert completed(server.url) == [3, 4, 5, 7]
    sent = server.bodies[0]
    assert torch.equal(torch.load(io.BytesIO(base64.b64decode(sent["prompt_embeds"])), weights_only=True), EMBEDS)
    assert sent["max_tokens"] == 5
    assert sent["stop_token_ids"] == [2, 7]
    assert sent["temperature"] == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([said(3)], "stopped in the middle"),
        ([said(3), 'data: {"choices": [{"tok'], "no completion"),
        ([said(3), 'data: {"error": {"message": "engine is dead"}}', DONE], "engine is dead"),
        (["data: {}", DONE], "no completion"),
    ],
)
def test_an_answer_without_its_end_is_an_error(lines, message):
    with ScriptedVLLM(lines) as server, pytest.raises(VLLMError, match=message):
        completed(server.url)


def test_a_refusal_is_told():
    with ScriptedVLLM(["no room"], status=400) as server, pytest.raises(VLLMError, match="400: no room"):
        completed(server.url)


def test_a_server_that_is_not_there_is_told():
    with ScriptedVLLM() as server:
        gone = server.url
    for ask in (completed, checked):
        with pytest.raises(VLLMError, match=gone):
            ask(gone)


def test_another_model_or_too_short_a_one_is_refused():
    with ScriptedVLLM(name="smollm2", positions=64) as server:
        checked(server.url, name="smollm2", positions=64)
        with pytest.raises(VLLMError, match="serves smollm2, not tiny"):
            checked(server.url)
        with pytest.raises(VLLMError, match="max_model_len=65"):
            checked(server.url, name="smollm2", positions=65)


@pytest.mark.parametrize(
    "host", ["example.org", "10.0.0.1", "0.0.0.0", "[::]", "127.0.0.1.example.org", "localhost.example"]
)
def test_other_machines_are_refused(host):
    with pytest.raises(ValueError, match="this machine alone"):
        VLLMClient(f"http://{host}:8000/v1", name="tiny", timeout=5)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "[::1]"])
def test_this_machine_is_asked(host):
    client = VLLMClient(f"http://{host}:8000/v1", name="tiny", timeout=5)
    assert client.base_url == f"http://{host}:8000/v1"
