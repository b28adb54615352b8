"""Generation: ours against the usual loop, greedy, with the stop lengths of ragged narratives.

    python benchmarks/generation.py [users=500] [usual_users=128] [rounds=1]

Ours is what `evaluate.py` runs: rows that end leave and others enter, the cache stays where it is. The usual loop is
`model.generate` on 32 users at a time, in the order of the data, until the longest of them is done. Both stop each
narrative at the length of its reference; the texts are compared token by token. The limit is the rate of the LM's own
matrix products at as many rows as ours decodes at once. A second line is ours with `evaluation.precision=int8`.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Line, MatrixRate, Ragged, alternating, arguments, ragged, report, save
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from regen.generation.narratives import decode_rows
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime.costs import Stopwatch
from regen.runtime.narrow_weights import narrow_weights

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


def measure(users: int = 500, usual_users: int = 128, rounds: int = 1) -> list[Line]:
    """Ours on all users, the usual loop on the first batches of them, which are like the rest."""
    world = ragged(users, "encoder=both")
    model = _learned(world)
    stops = [len(target) for target in world.dataset.targets]
    end = world.lm.tokenizer.pad_token_id
    rows = world.cfg.evaluation.batch_size
    rate = MatrixRate(world.lm, backward=False)
    prefixes = sum(world.dataset.lengths) - sum(stops)
    flops = rate.flops(prefixes + sum(stops) - users, sum(stops))
    texts: dict[str, dict[int, list[int]]] = {}
    watch = Stopwatch()  # of ours

    def rate_of(name: str, write: Callable[[], dict[int, list[int]]]) -> float:
        started = time.perf_counter()
        texts[name] = write()
        return sum(map(len, texts[name].values())) / (time.perf_counter() - started)

    def ours(watch: Stopwatch, precision: str | None = None) -> dict[int, list[int]]:
        with narrow_weights(model.lm, precision):
            return dict(decode_rows(model, world.dataset, limits=stops, stop_ids={end}, rows=rows, watch=watch))

    with torch.no_grad():
        rates = alternating(
            {
                "limit": lambda: sum(stops) * rate.measure(rows) / flops,
                "ours": lambda: rate_of("ours", lambda: ours(watch)),
                "int8": lambda: rate_of("int8", lambda: ours(Stopwatch(), "int8")),
                "usual": lambda: rate_of("usual", lambda: usual(model, world, stops[:usual_users], end)),
            },
            rounds,
        )
    same = sum(texts["ours"][user] == _until(ids, end) for user, ids in texts["usual"].items())
    share = watch.seconds["prefill"] / sum(watch.seconds.values())
    note = (
        f"{sum(stops):,} tokens for {users} users, {share:.0%} of our time on their prefixes; the texts of {same} of "
        f"the {usual_users} users that the usual loop wrote for are identical."
    )
    return [
        Line("generation", "tokens/s", rates["ours"], rates["usual"], rates["limit"], note),
        Line("generation in int8", "tokens/s", rates["int8"], rates["usual"]),
    ]


def _learned(world: Ragged) -> SoftTokenLM:
    """A model whose LoRA is not zero, as after training."""
    torch.manual_seed(0)
    model = world.model().eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


if __name__ == "__main__":
    lines = measure(**arguments(sys.argv[1:], users=500, usual_users=128, rounds=1))
    save(Path(__file__).stem, lines)
    report(lines)
