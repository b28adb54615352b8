"""Services as a user starts them: by command, in a process of their own, on a free port; and clients of an app."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
START = 120  # seconds in which a service has to listen
STOP = 30  # in which it has to end when told to


class Service(NamedTuple):
    url: str
    process: subprocess.Popen
    said: list[str]


@contextmanager
def service(folder, checkpoint, *options, **environment):
    """Gives a running service; afterwards it is told to stop, and has to."""
    command = [
        sys.executable,
        "-m",
        "regen",
        "serve",
        f"checkpoint={checkpoint}",
        "port=0",
        "hydra.run.dir=logs",
        *options,
    ]
    started = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, addresses = [], Queue()

    def listen():
        for line in started.stdout:
            said.append(line)
            if "http://" in line:
                addresses.put(line[line.index("http://") :].strip().removesuffix("/docs"))

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        try:
            url = addresses.get(timeout=START)
        except Empty:
            raise AssertionError(f"no address after {START} s: {''.join(said)}") from None
        yield Service(url, started, said)
        started.send_signal(signal.SIGTERM)
        assert started.wait(STOP) == 0, "".join(said)
    finally:
        started.kill()
        started.wait()
        reader.join(STOP)
        started.stdout.close()


def scope(path):
    """A POST of JSON to this machine, as a server describes it to an app."""
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "http_version": "1.1",
        "scheme": "http",
    }


def receives(body, left):
    """What a server gives of a client that sends a body, and leaves when told."""
    parts = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])

    async def receive():
        if (part := next(parts, None)) is not None:
            return part
        await left.wait()
        return {"type": "http.disconnect"}

    return receive
