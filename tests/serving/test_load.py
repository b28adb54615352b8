"""64 clients at a time for a minute, some of which leave or send nonsense: every answer is that of its request alone."""

import asyncio
import json
import random
import socket
import time
from collections import Counter

import httpx
import psutil
import pytest
from serving.services import service

CLIENTS = 64
SECONDS = 60
FEATURE = "purchase_reason"
GROWTH = 48 << 20  # bytes that the service may grow after its first third, allocators being what they are
BAD = [
    b'{"narratives": [{"hist',
    b"[[[[",
    b'{"narratives": [{"history": [{"title": 5}], "feature": "x"}]}',
    b"\x00" * 3000,
    b'{"narratives": [{"history": [' + b"0," * 900_000 + b'0], "feature": "x"}]}',  # one error, not 900,000
]
SLOWEST = 5  # seconds in which /health has to answer, whatever others send


def asked(histories):
    return {"narratives": [{"history": history, "feature": FEATURE} for history in histories]}


async def client(number, http, histories, alone, counts, until):
    draw = random.Random(number)
    while time.monotonic() < until:
        several = draw.choice([1, 1, 1, 1, 6])
        places = [draw.randrange(len(histories)) for _ in range(several)]
        body = {**asked([histories[at] for at in places]), "stream": draw.random() < 0.3}
        kind = draw.random()
        if kind < 0.1:
            headers = {"content-type": "application/json"}
            reply = await http.post("/v1/narratives", content=draw.choice(BAD), headers=headers)
            assert reply.status_code in (400, 422), reply.text
            counts["bad"] += 1
        elif kind < 0.2:
            try:
                await http.post("/v1/narratives", json=body, timeout=httpx.Timeout(60, read=draw.uniform(0.001, 0.3)))
                counts["in time"] += 1
            except httpx.ReadTimeout:
                counts["left"] += 1
        else:
            reply = await http.post("/v1/narratives", json=body)
            if reply.status_code == 429:
                counts["full"] += 1
                await asyncio.sleep(draw.uniform(0, int(reply.headers["retry-after"])))
                continue
            assert reply.status_code == 200, reply.text
            assert texts(reply, stream=body["stream"]) == [alone[at] for at in places]
            counts["right"] += 1


async def silent(url, history, until):
    """Streams that nobody reads: the service has to free their places, or every other client gets 429."""
    address = httpx.URL(url)
    body = json.dumps({**asked([history] * 16), "stream": True}).encode()
    head = f"POST /v1/narratives HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        unread.setblocking(False)
        await asyncio.get_running_loop().sock_connect(unread, (address.host, address.port))
        await asyncio.get_running_loop().sock_sendall(unread, (head.encode() + b"\r\n\r\n" + body) * 6)
        await asyncio.sleep(until - time.monotonic())


async def health(http, slowest, until):
    while time.monotonic() < until:
        asked_at = time.monotonic()
        assert (await http.get("/health")).status_code == 200
        slowest.append(time.monotonic() - asked_at)
        assert (await http.get("/health", headers={"host": "evil.example"})).status_code == 400
        await asyncio.sleep(0.5)


def texts(reply, *, stream):
    if not stream:
        return [one["text"] for one in reply.json()["narratives"]]
    events = [event.split("\ndata: ") for event in reply.text.strip().split("\n\n")]
    whole = [json.loads(data) for name, data in events if name == "event: narrative"]
    return [one["text"] for one in sorted(whole, key=lambda one: one["narrative"])]


async def load(served, histories, alone, counts, memory, slowest):
    until = time.monotonic() + SECONDS
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    process = psutil.Process(served.process.pid)
    async with httpx.AsyncClient(base_url=served.url, timeout=60, limits=limits) as http, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number, http, histories, alone, counts, until))
        group.create_task(silent(served.url, histories[0], until))
        group.create_task(health(http, slowest, until))
        while time.monotonic() < until:
            memory.append(process.memory_info().rss)
            await asyncio.sleep(SECONDS / 60)


def under_way(url):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("regen_under_way "))


@pytest.mark.slow
def test_many_clients_at_once(exported, finished, tmp_path):
    histories = [history[-length:] for history in finished.histories[:12] for length in (1, 2, 4)]
    counts, memory, slowest = Counter(), [], []
    with service(tmp_path, exported, "rows=16", "queue=40") as served:
        replies = [httpx.post(f"{served.url}/v1/narratives", json=asked([one]), timeout=60) for one in histories]
        alone = [texts(reply, stream=False)[0] for reply in replies]
        assert len(set(alone)) > 3
        asyncio.run(load(served, histories, alone, counts, memory, slowest))
        deadline = time.monotonic() + 20
        while under_way(served.url) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert under_way(served.url) == 0
        assert httpx.get(f"{served.url}/health").status_code == 200
        metrics = httpx.get(f"{served.url}/metrics").text
    assert min(counts[kind] for kind in ("bad", "left", "full")) > 0, counts
    assert counts["right"] > CLIENTS, counts
    assert "regen_clients_left_total 0.0" not in metrics
    assert 'status="500"' not in metrics
    assert max(slowest) < SLOWEST, slowest
    third = len(memory) // 3
    assert max(memory[-third:]) - max(memory[:third]) < GROWTH, [size >> 20 for size in memory]
