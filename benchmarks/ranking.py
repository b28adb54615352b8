"""Ranking a large catalogue: time and memory per user of the exact scores that `task=recommend` ranks by.

    python benchmarks/ranking.py [items=1000000] [dim=128] [users=64]

Random vectors; the language model is left out, because what it costs does not depend on the catalogue. The limit is the
rate of one product of the same size, measured in the same round.
"""

import sys
import time

import torch
from harness import Line, alternating, arguments, report

from regen.evaluation.recommend import SCORES
from regen.models.adapter import LinearAdapter
from regen.models.language_model import load_tiny
from regen.models.next_item import NextItemLM
from regen.runtime.costs import PeakMemory

given = arguments(sys.argv[1:], items=1_000_000, dim=128, users=64)
items, dim, users = given["items"], given["dim"], given["users"]
lm = load_tiny("tiny", width=32, layers=1, heads=1, seed=0)
catalogue = torch.randn(items, dim)
model = NextItemLM(lm.model, LinearAdapter(dim, 32), items=catalogue, bias=torch.zeros(items), exclude_bought=True)
queries, bought = torch.randn(users, dim), torch.randint(items, (users, 50))
memory = PeakMemory()


def ranked() -> float:
    """Users a second: scores, bought items left out, the best 20."""
    started = time.perf_counter()
    size = max(1, SCORES // items)
    with torch.no_grad():
        for ours, before in zip(queries.split(size), bought.split(size), strict=True):
            model.scores(ours, before).topk(20)
    return users / (time.perf_counter() - started)


def product() -> float:
    """Users a second of the product alone, over all users at once."""
    started = time.perf_counter()
    queries @ catalogue.T
    return users / (time.perf_counter() - started)


rates = alternating({"ranking": ranked, "product": product}, rounds=5)
peak = memory.gib()
note = f"{items:,} items of {dim} numbers, {1000 / max(rates['ranking']):.1f} ms a user at best" + (
    f", peak {peak:.1f} GiB." if peak else "."
)
report([Line("ranking a catalogue", "users/s", rates["ranking"], limit=rates["product"], note=note)])
