"""Recommenders over several splits of the users, pooled: more test users than one split has.

    python train.py -m task=recommend source=sequences encoder=cf,content,both split.salt=regen,a,b,c,d \\
      lm=tiny trainer.max_steps=1 paths.runs_dir=outputs/splits
    make baselines ARGS=outputs/data/baselines-…      # for each of the five
    python benchmarks/splits.py runs=outputs/splits [lists=outputs/baselines]

Reads the scored runs of `task=recommend` in a folder and the lists that `make baselines` left for their splits, if
there are any for all of them. Ours is the closed form: with `lm=tiny trainer.max_steps=1` the language model is not
trained. Prints each system's metrics and their difference to `both`, with intervals over users; a user who is a test
user of two splits is drawn with both.
"""

import sys
from collections import defaultdict
from pathlib import Path

import polars as pl
from harness import arguments

from regen.evaluation.cells import run_cells
from regen.evaluation.recommend import score_recommendations_file
from regen.evaluation.recommenders import baselines
from regen.evaluation.scoring import EXAMPLES, ScoringOptions
from regen.evaluation.statistics import Bootstrap
from regen.evaluation.text_metrics import METRICS
from regen.pipeline import read_run

OURS = "both, closed form"
SHOWN = ("recall_1", "recall_10", "recall_50", "ndcg_10", "mrr")
given = arguments(sys.argv[1:], runs="outputs/runs", lists="outputs/baselines")
systems: dict[str, list[pl.DataFrame]] = defaultdict(list)
splits = set()
for cell in run_cells(Path(given["runs"])):
    run = read_run(cell.folder)
    examples = pl.read_parquet(cell.folder / EXAMPLES)
    systems[f"{cell.encoder}, closed form"].append(examples.filter(system="closed form"))
    if cell.encoder != "both":
        continue
    splits.add(run.config.split.salt)
    for system in ("popularity", "item kNN", "ALS", "content kNN"):
        systems[system].append(examples.filter(system=system))
    theirs = Path(given["lists"], baselines(run.config, run.inputs.prepared).path.name, "sasrec.jsonl")
    if theirs.is_file():
        folder = theirs.parent / "scores"
        score_recommendations_file(theirs, folder, like=run, options=ScoringOptions(resamples=100))
        systems["SASRec"].append(pl.read_parquet(folder / EXAMPLES))
whole = {name: pl.concat(frames, how="diagonal") for name, frames in systems.items() if len(frames) == len(splits)}
bootstrap = Bootstrap(whole[OURS]["user_id"])
sums = {name: [bootstrap.resample(frame.select("user_id", "examples", *SHOWN))] for name, frame in whole.items()}
print(f"{len(splits)} splits, {len(whole[OURS]):,} test users, {len(bootstrap.users):,} of them distinct\n")
print(f"| system | {' | '.join(METRICS[name].display for name in SHOWN)} |\n|{'---|' * (1 + len(SHOWN))}")
for name, ours in sums.items():
    values = [bootstrap.interval(METRICS[metric], ours) for metric in SHOWN]
    print(f"| {name} | {' | '.join(f'{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]' for one in values)} |")
for name, theirs in sums.items():
    if name != OURS:
        values = [bootstrap.difference(METRICS[metric], sums[OURS], theirs, relative=True) for metric in SHOWN]
        found = [f"{one.value:+.1f} % [{one.low:+.1f}, {one.high:+.1f}]" if one.value > -100 else "—" for one in values]
        print(f"| both vs {name} | {' | '.join(found)} |")
