"""Requests a second of the service, 64 clients at once against one at a time, by the public load tool `hey`.

    python benchmarks/serving.py [checkpoint=FOLDER] [seconds=20] [rounds=2] [clients=64]

Takes the newest `both` run of `make grid`, or the exported model or run that is named. `hey` is a package of Debian and
Homebrew: apt-get install hey
"""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from harness import FOLDER, Line, alternating, arguments, report, save

from regen.analysis.adapter_sample import newest_run
from regen.serving.server import load_model

PURCHASES = 8  # of the history in each request, near the paper's mean
REVIEW = "Does what it should, and I would buy it again."


def request(checkpoint: str) -> str:
    """A request for a history of items that the model knows, with a review of each."""
    model = load_model(checkpoint)
    ids = model.items.table["item_id"].head(PURCHASES).to_list()
    history = [{"item_id": item, "rating": 5, "review": REVIEW} for item in ids]
    return json.dumps({"narratives": [{"history": history, "feature": model.features[0]}]})


@contextmanager
def serving(checkpoint: str, rows: int) -> Iterator[tuple[str, psutil.Process]]:
    """The service in a process of its own; gives its address."""
    command = [sys.executable, "-m", "regen", "serve", f"checkpoint={checkpoint}", "port=0", f"rows={rows}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if "http://" in line), None)
        if line is None:
            raise SystemExit(f"the service did not start: {' '.join(command)}")
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield line[line.index("http://") :].strip().removesuffix("/docs"), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def hey(url: str, body: Path, *, clients: int, seconds: int) -> float:
    """Answers a second.

    Raises:
        SystemExit: If an answer is no narrative.
    """
    options = ["-z", f"{seconds}s", "-c", str(clients), "-t", "60", "-m", "POST", "-T", "application/json"]
    command = ["hey", *options, "-D", str(body), f"{url}/v1/narratives"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(told, file=sys.stderr)
    statuses = re.findall(r"\[(\d+)\]\s+(\d+) responses", told)
    if [status for status, _ in statuses] != ["200"] or "Error distribution" in told:
        raise SystemExit(f"not every answer is a narrative:\n{told}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])  # type: ignore[index]


def main(checkpoint: str, seconds: int, rounds: int, clients: int) -> None:
    if shutil.which("hey") is None:
        raise SystemExit("hey is not installed: apt-get install hey")
    checkpoint = checkpoint or str(newest_run(Path("outputs/runs"), encoders=["both"]))
    FOLDER.mkdir(parents=True, exist_ok=True)
    body = FOLDER / "serving-request.json"
    body.write_text(request(checkpoint))
    with serving(checkpoint, rows=clients) as (url, process):
        hey(url, body, clients=1, seconds=3)  # the first requests load what is loaded late
        rates = alternating(
            {
                "alone": lambda: hey(url, body, clients=1, seconds=seconds),
                "together": lambda: hey(url, body, clients=clients, seconds=seconds),
            },
            rounds,
        )
        memory = process.memory_info().rss / 2**30
    note = f"`hey`, {clients} clients against one, {seconds} s each; the service holds {memory:.2f} GiB at the end."
    lines = [Line("serving", "requests/s", rates["together"], rates["alone"], note=note)]
    report(lines)
    save("serving", lines)


if __name__ == "__main__":
    options = arguments(sys.argv[1:], checkpoint="", seconds="20", rounds="2", clients="64")
    main(options["checkpoint"], int(options["seconds"]), int(options["rounds"]), int(options["clients"]))
