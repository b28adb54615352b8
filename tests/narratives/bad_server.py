"""An endpoint that answers by script: which faults precede the good answer to a request follows from the request."""

import hashlib
import json
import re
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET

FAULTS = (
    "none",
    "429 with Retry-After",
    "429",
    "429 with Retry-After 0",
    "500",
    "200 with an error",
    "no choices",
    "null message",
    "no usage",
    "usage without counts",
    "usage of zero",
    "time-out",
    "reset",
    "half a body",
    "truncated JSON",
    "wrong keys",
    "extra keys",
    "score 8",
    "empty text",
    "refusal",
    "slow",
)
PAID = ("truncated JSON", "wrong keys", "score 8", "empty text", "refusal")  # an answer came, but is of no use
FINAL = ("refusal",)  # no good answer follows
USAGES = {  # of answers that are good otherwise
    "no usage": None,
    "usage without counts": {},
    "usage of zero": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
}
GOOD = ("none", "extra keys", "slow", *USAGES)  # the first answer can be used
BROKEN = {  # bodies with status 200 that hold no answer
    "200 with an error": {"error": {"message": "upstream is overloaded", "code": 502}},
    "no choices": {"id": "1", "object": "chat.completion", "created": 0, "model": "scripted-1", "choices": []},
    "null message": {"id": "1", "model": "scripted-1", "choices": [{"index": 0, "message": None}]},
}


class BadServer:
    """Serves in a thread, on a free port of 127.0.0.1.

    Args:
        faults: Of which a request gets one before its good answer, chosen by its hash.
        timeout: Seconds that a "time-out" lasts.
        slow: Seconds that a "slow" answer takes.
        refuse_schema: Whether requests with a JSON schema get 400.
        key: The only key that is let in.
        statuses: By a word: the status and message that every request with the word gets.
    """

    def __init__(self, faults=FAULTS, *, timeout=1.0, slow=0.2, refuse_schema=False, key=None, statuses=None):
        self.faults, self.timeout, self.slow = faults, timeout, slow
        self.refuse_schema, self.key = refuse_schema, key
        self.statuses = statuses or {}
        self.lock = threading.Lock()
        self.asked = []  # the hash of each request, in order
        self.sent = []  # the hash of each request that was sent its good answer
        self.useless = Counter()  # by hash: paid answers of no use
        self.seen = Counter()
        self.bodies = []
        self.under_way = self.most_under_way = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fault_of(self, request):
        return self.faults[int(request[:8], 16) % len(self.faults)]

    def _handler(server):  # noqa: N805 - the handler below has the name self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                parsed = json.loads(body)
                request = request_hash(parsed)
                with server.lock:
                    server.bodies.append(body.decode())
                    server.under_way += 1
                    server.most_under_way = max(server.most_under_way, server.under_way)
                try:
                    self.answer(parsed, request)
                finally:
                    with server.lock:
                        server.under_way -= 1

            def answer(self, parsed, request):
                if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
                    return self.send(401, {"error": {"message": f"Wrong key {self.headers.get('Authorization')}"}})
                if server.refuse_schema and parsed["response_format"]["type"] == "json_schema":
                    return self.send(400, {"error": {"message": "response_format json_schema is not supported"}})
                with server.lock:
                    server.asked.append(request)
                    server.seen[request] += 1
                    fault = server.fault_of(request) if server.seen[request] == 1 else "none"
                    if fault in FINAL:
                        server.seen[request] = 0
                    if fault in PAID:
                        server.useless[request] += 1
                for word, (status, message) in server.statuses.items():
                    if word in parsed["messages"][-1]["content"]:
                        return self.send(status, {"error": {"message": message}})
                good = good_answer(parsed, request)
                if fault == "429 with Retry-After":
                    return self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"})
                if fault == "429":
                    return self.send(429, {"error": {"message": "slow down"}})
                if fault == "429 with Retry-After 0":
                    return self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
                if fault in BROKEN:
                    return self.send(200, BROKEN[fault])
                if fault == "500":
                    return self.send(500, {"error": {"message": "broken"}})
                if fault == "time-out":
                    time.sleep(server.timeout)
                    return None
                if fault == "reset":
                    self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    return self.connection.close()
                if fault == "half a body":
                    text = json.dumps(completion(json.dumps(good)))
                    return self.write(200, text[: len(text) // 2].encode(), {})
                if fault == "slow":
                    time.sleep(server.slow)
                text = json.dumps(good)
                if fault == "truncated JSON":
                    text = text[: len(text) // 2]
                if fault == "wrong keys":
                    text = json.dumps({f"{key}s": value for key, value in good.items()})
                if fault == "extra keys":
                    text = json.dumps({**good, "remark": "I hope this helps"})
                if fault == "score 8":
                    text = json.dumps(dict.fromkeys(good, 8))
                if fault == "empty text":
                    text = ""
                refusal = "I cannot help with that." if fault == "refusal" else None
                if fault not in PAID:
                    with server.lock:
                        server.sent.append(request)
                record = completion(text, refusal)
                return self.send(200, {**record, "usage": USAGES[fault]} if fault in USAGES else record)

            def send(self, status, record, headers=None):
                self.write(status, json.dumps(record).encode(), headers or {})

            def write(self, status, body, headers):
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # the client was killed
                    self.close_connection = True

            def log_message(self, *_):
                pass

        return Handler


def request_hash(parsed):
    """Of messages and draw; the seed also counts attempts, in steps of ten thousand."""
    return hashlib.sha256(json.dumps([parsed["messages"], parsed.get("seed", 0) % 10_000]).encode()).hexdigest()


def good_answer(parsed, request):
    """Texts that name the request and the tag of the user in it, so that a mix-up would show; mid-scale judgements."""
    tag = re.findall(r"tag-\w+", parsed["messages"][-1]["content"])
    keys = re.findall(r'"([a-z_]+)"', parsed["messages"][0]["content"].rpartition("exactly")[2])
    keys = keys or re.findall(r'^- "([a-z_]+)":', parsed["messages"][0]["content"], re.MULTILINE)
    if any(key.endswith("_confidence") for key in keys):
        return dict.fromkeys(keys, "medium")
    keys = re.findall(r'^- "([a-z_]+)":', parsed["messages"][0]["content"], re.MULTILINE)
    return {key: f"{key} of {tag[-1] if tag else 'nobody'} {request}" for key in keys}


def completion(text, refusal=None):
    message = {"role": "assistant", "content": None if refusal else text, "refusal": refusal}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }
