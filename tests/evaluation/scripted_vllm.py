"""A vLLM server that answers by script."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ScriptedVLLM:
    """Serves in a thread, on a free port of 127.0.0.1.

    Args:
        lines: What each answer streams, line by line; after them the connection closes.
        name: Of its model.
        status: Of each answer.
        positions: That its model reads.
    """

    def __init__(self, lines=(), *, name="tiny", status=200, positions=512):
        self.lines, self.name, self.status, self.positions = list(lines), name, status, positions
        self.bodies = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def _handler(server):  # noqa: N805 - the handler below has the name self
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = json.dumps({"data": [{"id": server.name, "max_model_len": server.positions}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(server.status)
                self.end_headers()
                for line in server.lines:
                    self.wfile.write(f"{line}\n\n".encode())

            def log_message(self, *_):
                pass

        return Handler


def said(*tokens):
    """The line with which vLLM streams tokens."""
    return "data: " + json.dumps({"choices": [{"text": "", "token_ids": list(tokens)}]})


DONE = "data: [DONE]"
