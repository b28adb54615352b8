"""Generation: ours against the usual loop, greedy, with the stop lengths of ragged narratives.

    python benchmarks/generation.py [users=500]

Ours is what `evaluate.py` runs: rows that end leave and others enter, the cache stays where it is. The usual loop is
`model.generate` on 32 users at a time, in the order of the data, until the longest of them is done. Both stop each
narrative at the length of its reference; the texts are compared token by token. The limit is the rate of the LM's own
matrix products at as many rows as ours decodes at once.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import Line, MatrixRate, Ragged, arguments, ragged, report, save
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from regen.costs import Stopwatch
from regen.evaluation.generate import decode_rows
from regen.models.soft_token_lm import SoftTokenLM

ROWS = 32  # of the usual loop


class StopAt(StoppingCriteria):
    """Ends each row at its own length."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.lengths


def usual(model: SoftTokenLM, world: Ragged, stops: list[int], end: int) -> dict[int, list[int]]:
    """Token ids of every user by `generate`."""
    written: dict[int, list[int]] = {}
    config = GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=end, max_new_tokens=max(stops))
    for first in range(0, len(stops), ROWS):
        indices = list(range(first, min(first + ROWS, len(stops))))
        prefix, mask = model.prefix(world.dataset.collate(indices))
        ids = model.lm.generate(
            inputs_embeds=prefix,
            attention_mask=mask.long(),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([StopAt([stops[index] for index in indices])]),
        )
        written |= {index: row[: stops[index]] for index, row in zip(indices, ids.tolist(), strict=True)}
    return written


def measure(users: int = 500) -> list[Line]:
    world = ragged(users, "encoder=both")
    torch.manual_seed(0)
    model = world.model().eval()
    for name, parameter in model.named_parameters():  # a LoRA that has learned is not zero
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    stops = [len(target) for target in world.dataset.targets]
    end = world.lm.tokenizer.pad_token_id
    rows = world.cfg.evaluation.batch_size
    rate = MatrixRate(world.lm, backward=False)
    prefixes = sum(world.dataset.lengths) - sum(stops)
    flops = rate.flops(prefixes + sum(stops) - users, sum(stops))
    limits, seconds, watch = [], [], Stopwatch()
    with torch.no_grad():
        sides = {
            "ours": lambda: dict(
                decode_rows(model, world.dataset, limits=stops, stop_ids={end}, rows=rows, watch=watch)
            ),
            "usual": lambda: usual(model, world, stops, end),
        }
        texts = {}
        for name in ("ours", "usual", "ours"):
            limits.append(sum(stops) * rate.measure(rows) / flops)
            started = time.perf_counter()
            texts[name] = sides[name]()
            seconds.append(time.perf_counter() - started)
            print(f"{name}: {sum(stops) / seconds[-1]:.1f} tokens/s", flush=True)
    same = sum(_until(texts["ours"][user], end) == _until(texts["usual"][user], end) for user in range(users))
    tokens = sum(len(_until(text, end)) for text in texts["usual"].values())
    note = f"{tokens:,} tokens for {users} users; {same} of {users} texts identical."
    rates = [tokens / taken for taken in seconds]
    return [
        Line("generation", "tokens/s", [rates[0], rates[2]], [rates[1]] * 2, [limits[0], limits[2]], note),
    ]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


if __name__ == "__main__":
    lines = measure(**arguments(sys.argv[1:], users=500))
    save(Path(__file__).stem, lines)
    report(lines)
