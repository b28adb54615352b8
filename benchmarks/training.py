"""Training: ours against the usual loop and against the history as words, on ragged examples with SmolLM2 and LoRA.

    python benchmarks/training.py [examples=48] [rounds=2]

Ours is the step of `train.py`: Lightning, batches of similar lengths, rows without padding inside, the head on target
rows. The usual loop is Hugging Face's `Trainer` on the same model and examples: random batches padded to their longest,
`labels=-100`, all logits. `encoder=text` is ours with the history as words. The limit is what the machine's matrix
products alone would allow, measured on the LM's own layer shapes, for the positions that are not padding.
"""

import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from harness import Line, MatrixRate, Ragged, alternating, arguments, ragged, report, save
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from regen.data.batch import Batch
from regen.runtime.packed_weights import packed_weights
from regen.training.module import NarrativeModule

WARM_UP = 1  # steps before the clock starts


class UsualModel(nn.Module):
    """All logits, masked by labels of -100."""

    def __init__(self, world: Ragged) -> None:
        super().__init__()
        self.model = world.model()

    def forward(self, **columns: Any) -> dict[str, torch.Tensor]:
        batch = Batch(**columns)
        prefix, mask = self.model.prefix(batch)
        embeds = torch.cat([prefix, self.model.lm.get_input_embeddings()(batch.target)], dim=1)
        labels = torch.cat([torch.full(mask.shape, -100), batch.target.masked_fill(~batch.target_mask, -100)], dim=1)
        mask = torch.cat([mask, batch.target_mask], dim=1).long()
        return {"loss": self.model.lm(inputs_embeds=embeds, attention_mask=mask, labels=labels).loss}


class Clock(L.Callback):
    """Starts after the warm-up steps of Lightning."""

    started = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM_UP:
            self.started = time.perf_counter()


class UsualClock(TrainerCallback):
    """Starts after the warm-up steps of Hugging Face's `Trainer`."""

    started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM_UP:
            self.started = time.perf_counter()


def ours(world: Ragged) -> float:
    """Examples per second of Lightning and `NarrativeModule`."""
    module = NarrativeModule(world.model().train(), adapter_lr=1e-3, lm_lr=1e-3)
    clock, quiet = Clock(), dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        callbacks=[clock],
        **quiet,
    )
    with packed_weights(module.model.lm, backward=True):
        trainer.fit(module, world.datamodule())
    return _rate(world, clock)


def usual(world: Ragged) -> float:
    """Examples per second of Hugging Face's `Trainer`."""
    clock = UsualClock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=world.cfg.training.batch_size,
            num_train_epochs=1,
            learning_rate=1e-3,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        )
        Trainer(
            UsualModel(world),
            settings,
            train_dataset=world.dataset,
            data_collator=lambda indices: vars(world.dataset.collate(indices)),
            callbacks=[clock],
        ).train()
    return _rate(world, clock)


def _rate(world: Ragged, clock: Clock | UsualClock) -> float:
    done = len(world.dataset) - WARM_UP * world.cfg.training.batch_size
    return done / (time.perf_counter() - clock.started)


def measure(examples: int = 48, rounds: int = 2) -> list[Line]:
    world = ragged(examples, "encoder=both")
    as_words = ragged(2 * world.cfg.training.batch_size, "encoder=text")  # seven seconds an example
    rate = MatrixRate(world.lm, backward=True)
    targets = sum(len(target) for target in world.dataset.targets)
    positions = sum(world.dataset.lengths) - len(world.dataset)  # no end token is read
    per_example = rate.flops(positions, targets) / len(world.dataset)
    at_once = round(world.cfg.training.batch_size * positions / len(world.dataset))
    rates = alternating(
        {
            "limit": lambda: rate.measure(at_once) / per_example,
            "ours": lambda: ours(world),
            "usual": lambda: usual(world),
            "text": lambda: ours(as_words),
        },
        rounds,
    )
    words = sum(as_words.dataset.lengths) / len(as_words.dataset)
    note = (
        f"{positions / len(world.dataset):.0f} positions an example, {words:.0f} with the history as words; "
        f"{rate.measure(at_once) / 1e9:.0f} Gflop/s of matrix products at {at_once} rows."
    )
    return [
        Line("training, against the usual loop", "examples/s", rates["ours"], rates["usual"], rates["limit"], note),
        Line("training, against encoder=text", "examples/s", rates["ours"], rates["text"], rates["limit"]),
    ]


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")
    lines = measure(**arguments(sys.argv[1:], examples=48, rounds=2))
    save(Path(__file__).stem, lines)
    report(lines)
