"""What a grid costs beside training and generation, from the records that its cells left.

    python benchmarks/grid.py                              twelve short cells of the default LM, then their overhead
    python benchmarks/grid.py folder=outputs/grids/<date>/<time>         of a grid that has run

Training and generation are the cells' own measurements; everything else of a cell, and what lies between one cell and
the next, is overhead: composing, opening artefacts, building the model, validation's set-up, scoring, the table.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness import Line, arguments, report, save

SWEEP = ("encoder=cf,content,both", "adapter=linear,mlp", "seed=0,1")


@dataclass(frozen=True)
class CellTimes:
    """Seconds of one cell; start, training and end are times of day."""

    start: float
    training: float
    end: float
    trained: float
    generated: float


def read_cell(job: Path) -> CellTimes | None:
    """Times of a cell that trained in this grid; None for one that was reused or failed."""
    note = json.loads((job / "cell.json").read_text())
    start, end = ((job / name).stat().st_mtime for name in (".hydra/config.yaml", "cell.json"))
    if note["run"] is None:
        return None
    run = Path(note["run"])
    weights = (run / "model.safetensors").stat().st_mtime
    if not start < weights < end:
        return None
    trained = json.loads((run / "run.json").read_text())["seconds"]
    costs = json.loads((run / "evaluation.json").read_text())["costs"]
    examples = sum(1 for _ in (run / "predictions.jsonl").open())
    generated = examples * (costs.get("prefill_ms", 0) + costs["generation_ms"]) / 1000
    return CellTimes(start, weights - trained, end, trained, generated)


def overhead(folder: Path) -> Line:
    """What the cells of a grid cost beside their work, and how soon each starts training after the one before it.

    Raises:
        SystemExit: If none of them trained in this grid.
    """
    jobs = sorted((path.parent for path in folder.glob("*/cell.json")), key=lambda job: int(job.name))
    cells = [cell for job in jobs if (cell := read_cell(job))]
    if not cells:
        raise SystemExit(f"{folder}: none of its {len(jobs)} cells trained in this grid.")
    work = sum(cell.trained + cell.generated for cell in cells)
    one_by_one = [(before, after) for before, after in itertools.pairwise(cells) if after.start >= before.end]
    between = sum(after.start - before.end for before, after in one_by_one)
    total = sum(cell.end - cell.start for cell in cells) + between
    gaps = [after.training - before.end for before, after in one_by_one]
    share = f"{1 - work / total:.1%} overhead"
    note = f"{len(cells)} cells, {total:.0f} s, {work:.0f} s of them training and generation: {share}"
    if gaps:
        note += f"; a cell's training starts {min(gaps):.1f} to {max(gaps):.1f} s after the end of the one before"
    return Line("a grid's overhead", "s a cell", [(total - work) / len(cells)], note=f"{note}.")


def run_grid(steps: int, tokens: int) -> Path:
    """Runs twelve cells, then the same command again, which has to find them finished; returns the first grid."""
    folder = Path("outputs/bench/grid") / time.strftime("%Y-%m-%d-%H-%M-%S")
    short = [f"trainer.max_steps={steps}", f"evaluation.generation.max_new_tokens={tokens}"]
    command = [sys.executable, "train.py", "-m", *SWEEP, *short, "trainer.enable_progress_bar=false"]
    subprocess.run(
        [sys.executable, "-m", "regen", "encode"], check=True
    )  # once for all grids, and so no grid's overhead
    for name in ("first", "again"):
        started = time.perf_counter()
        places = [f"hydra.sweep.dir={folder}/{name}", f"paths.runs_dir={folder}/runs"]
        with Path(os.devnull).open("w") as nowhere:
            subprocess.run([*command, *places], check=True, stdout=nowhere, stderr=nowhere)
        print(f"{name}: {time.perf_counter() - started:.1f} s")
    return folder / "first"


if __name__ == "__main__":
    options = arguments(sys.argv[1:], folder="", steps=4, tokens=8)
    line = overhead(Path(options["folder"]) if options["folder"] else run_grid(options["steps"], options["tokens"]))
    report([line])
    if not options["folder"]:
        save("grid", [line])
