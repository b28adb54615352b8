"""All benchmarks, each in a process of its own, as one table: outputs/bench/table.md (`make bench`).

    python benchmarks/table.py [only=training,generation] [growth=true]

Whatever script in this folder saves lines is run with its defaults; the lines are the table.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from harness import FOLDER, HEAD, Line, arguments

HERE = Path(__file__).parent


def scripts(only: str) -> list[Path]:
    """The benchmarks of this folder, or those named.

    Raises:
        SystemExit: If a named one is none.
    """
    found = {path.stem: path for path in sorted(HERE.glob("*.py")) if re.search(r"^ +save\(", path.read_text(), re.M)}
    chosen = only.split(",") if only else list(found)
    if unknown := sorted(set(chosen) - found.keys()):
        raise SystemExit(f"only={unknown[0]}: no such benchmark; there are {', '.join(found)}")
    return [found[name] for name in chosen]


def markdown(lines: list[Line], failed: list[str], minutes: float) -> str:
    """The table with its notes, and what it lacks."""
    notes = [f"- {line.what}: {line.note}" for line in lines if line.note]
    notes += [f"- {name}: failed; python benchmarks/{name}.py says why." for name in failed]
    rows = [HEAD, *(line.row() for line in lines)]
    return "\n".join([*rows, "", *notes, "", f"Made in {minutes:.0f} minutes by `make bench`.", ""])


def main(only: str, growth: bool) -> None:
    started = time.monotonic()
    lines: list[Line] = []
    failed = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for script in scripts(only):
        print(f"== {script.stem}", flush=True)
        saved = FOLDER / f"{script.stem}.json"
        saved.unlink(missing_ok=True)
        done = subprocess.run([sys.executable, "-W", "ignore", str(script)], check=False).returncode == 0
        if done and saved.is_file():
            lines += [Line(**line) for line in json.loads(saved.read_text())]
        else:
            failed.append(script.stem)
    table = markdown(lines, failed, (time.monotonic() - started) / 60)
    (FOLDER / "table.md").write_text(table)
    print(f"\n{table}\n{FOLDER / 'table.md'}")
    if growth:
        subprocess.run([sys.executable, "-W", "ignore", str(HERE / "growth.py")], check=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    options = arguments(sys.argv[1:], only="", growth="true")
    main(options["only"], options["growth"] == "true")
