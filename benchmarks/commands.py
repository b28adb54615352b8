"""How soon a command answers: `--help`, `--cfg job` and the message for a wrong word, from the start of Python.

python benchmarks/commands.py [rounds=5]
"""

import subprocess
import sys
import time

from harness import Line, arguments, report, save

COMMANDS = {
    "train.py --help": ["train.py", "--help"],
    "train.py --cfg job": ["train.py", "--cfg", "job"],
    "train.py encoder=cff": ["train.py", "encoder=cff"],
    "train.py +training.foo=1": ["train.py", "+training.foo=1"],
    "evaluate.py --help": ["evaluate.py", "--help"],
    "regen prepare --help": ["-m", "regen", "prepare", "--help"],
}


def seconds(command: list[str]) -> float:
    """Wall time of one command in a process of its own."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], check=False, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    options = arguments(sys.argv[1:], rounds=5)
    lines = [
        Line(f"`{name}`", "s", [seconds(command) for _ in range(options["rounds"])])
        for name, command in COMMANDS.items()
    ]
    report(lines)
    save("commands", lines)
