"""What a training step costs: ours against the usual loop, on the synthetic office with SmolLM2.

    python benchmarks/training_step.py [examples]

The usual loop pads random batches, asks the LM for all logits and masks them by `labels=-100`. Both sides take the same
examples, the same LoRA and the same optimizer; rounds alternate, so that a noisy machine is noisy to both. Prints
examples/s of each side and their ratio.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from regen.config import CONF, register
from regen.data.batch import Batch
from regen.data.datamodule import LengthBatches, NarrativeDataset
from regen.models.narrative_model import NarrativeModel
from regen.training.assembly import build_data, build_inputs, build_model, load_language_model

ROUNDS = 3


def usual_loss(model: NarrativeModel, batch: Batch) -> torch.Tensor:
    """All logits, masked by labels of -100."""
    prefix, mask = model.prefix(batch)
    embeds = torch.cat([prefix, model.lm.get_input_embeddings()(batch.target)], dim=1)
    labels = torch.cat([torch.full(mask.shape, -100), batch.target.masked_fill(~batch.target_mask, -100)], dim=1)
    mask = torch.cat([mask, batch.target_mask], dim=1).long()
    return model.lm(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss


def our_loss(model: NarrativeModel, batch: Batch) -> torch.Tensor:
    """The head on target positions only."""
    loss, tokens = model(batch)
    return loss / tokens


def random_batches(dataset: NarrativeDataset, size: int) -> Iterator[list[int]]:
    """Batches in a random order, whatever their lengths."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    return itertools.cycle([order[i : i + size] for i in range(0, len(order) - size + 1, size)])


def rate(
    model: NarrativeModel, dataset: NarrativeDataset, batches: Iterator[list[int]], loss_of, examples: int
) -> float:
    """Examples per second over at least `examples` of them."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    done, started = 0, time.perf_counter()
    while done < examples:
        indices = next(batches)
        loss_of(model, dataset.collate(indices)).backward()
        optimizer.step()
        optimizer.zero_grad()
        done += len(indices)
    return done / (time.perf_counter() - started)


def main() -> None:
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else 160
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["encoder=cf", f"paths.data_dir={Path('outputs/data').absolute()}"])
    inputs = build_inputs(cfg)
    lm = load_language_model(cfg)
    data = build_data(cfg, inputs, lm)
    model = build_model(cfg, data, lm, start=False).train()
    dataset, size = data.splits["train"], cfg.training.batch_size
    sides = {
        "regen": (itertools.cycle(LengthBatches(dataset.lengths, size, shuffle=True).batches()), our_loss),
        "usual": (random_batches(dataset, size), usual_loss),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for name, (batches, loss_of) in list(sides.items()) * (ROUNDS + 1):
        rates[name].append(rate(model, dataset, batches, loss_of, examples if rates[name] else 2 * size))
    ours, usual = rates["regen"][1:], rates["usual"][1:]  # the first round warms up
    ratios = [a / b for a, b in zip(ours, usual, strict=True)]
    print(f"regen {statistics.median(ours):.2f} examples/s, usual loop {statistics.median(usual):.2f} examples/s")
    print(f"ratio {statistics.median(ratios):.2f} (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
