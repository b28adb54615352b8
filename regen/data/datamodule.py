"""Datasets, batches of similar lengths, and a data loader that can resume."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from torch.utils.data import DataLoader, Dataset, Sampler

from regen.data.batch import Batch, pad_rows
from regen.data.histories import Example
from regen.data.tables import DataError

logger = logging.getLogger(__name__)
EVALUATION_DRAW = 2**31  # `draw` of validation and test; larger than any training epoch


class NarrativeDataset(Dataset[int]):
    """Tokenised examples of one split and their interaction vectors.

    Args:
        examples: Narratives with their histories.
        vectors: Returns the vectors of an example's history.
        tokenizer: Tokenizer of the LM.
        prompts: Prompt of each feature.
        window: Context length of the LM.
        max_narrative_tokens: Narratives are truncated to this length; None for no limit.
        words: Returns a line of text per interaction, to put before the prompt (`encoder=text`).
        max_words: Maximum number of tokens of these lines. The newest interactions that fit are kept.
        reserved: Positions to keep free for the narrative, the same for all examples, so that the length of the
            history does not depend on the target.

    Raises:
        DataError: If history, prompt and narrative do not fit into the LM's window.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        vectors: Callable[..., Float[np.ndarray, "history dim"]],
        *,
        tokenizer: Any,
        prompts: Mapping[str, str],
        window: int,
        max_narrative_tokens: int | None = None,
        words: Callable[[Example], list[str]] | None = None,
        max_words: int = 0,
        reserved: int = 0,
    ) -> None:
        self.examples = list(examples)
        self.vectors = vectors
        self.pad = int(tokenizer.pad_token_id)
        instructions = {name: token_ids(tokenizer, [text])[0] for name, text in prompts.items()}
        end = np.array([tokenizer.eos_token_id])
        texts = [example.text for example in self.examples]
        self.targets = [np.concatenate([ids[:max_narrative_tokens], end]) for ids in token_ids(tokenizer, texts)]
        self.draw = EVALUATION_DRAW
        self.prompts = [instructions[example.feature] for example in self.examples]
        if words is not None:
            for at, prompt in enumerate(self.prompts):
                room = min(max_words, window - 1 - len(prompt) - reserved)
                told = _newest(token_ids(tokenizer, words(self.examples[at])), room)
                self.prompts[at] = np.concatenate([*told, prompt])
        soft = [0 if words is not None else len(example.rows) for example in self.examples]
        self.lengths = [
            1 + tokens + len(prompt) + len(target)
            for tokens, prompt, target in zip(soft, self.prompts, self.targets, strict=True)
        ]
        for example, length in zip(self.examples, self.lengths, strict=True):
            if length > window:
                raise DataError(
                    f"The {example.feature} of user {example.user_id!r} needs {length} positions ({len(example.rows)} "
                    f"interactions, the prompt, the narrative); the LM reads {window}. Set "
                    "data.max_narrative_tokens to cut narratives, or shorten the feature's prompt or data.max_history."
                )

    @property
    def prefixes(self) -> list[int]:
        """Number of positions before each narrative."""
        return [length - len(target) for length, target in zip(self.lengths, self.targets, strict=True)]

    def part(self, start: int, end: int) -> "NarrativeDataset":
        """A dataset of the examples from `start` to before `end`."""
        part = copy.copy(self)
        for name in ("examples", "targets", "prompts", "lengths"):
            setattr(part, name, getattr(self, name)[start:end])
        return part

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> int:
        return index

    def history(self, index: int) -> Float[np.ndarray, "history dim"]:
        """Interaction vectors of one example."""
        return self.vectors(self.examples[index], draw=self.draw)

    def collate(self, indices: Sequence[int]) -> Batch:
        """Pads the examples of one step."""
        fused, history_mask = pad_rows([torch.from_numpy(self.history(i)) for i in indices], 0, left=True)
        prompts = [torch.from_numpy(self.prompts[i]) for i in indices]
        prompt, prompt_mask = pad_rows(prompts, self.pad, left=True)
        target, target_mask = pad_rows([torch.from_numpy(self.targets[i]) for i in indices], self.pad, left=False)
        return Batch(torch.tensor(indices), fused, history_mask, prompt, prompt_mask, target, target_mask)


@dataclass
class LengthBatches(Sampler[list[int]]):
    """Batches of examples of similar length. Seed and epoch determine them; each rank takes its share of every batch.

    Args:
        lengths: Number of positions of each example.
        batch_size: Examples per step, over all ranks.
        shuffle: Whether to form new batches in every epoch. Otherwise the order is fixed, shortest first.
        seed: Seed of the shuffle.
        rank: Rank of this process.
        world_size: Number of processes.
        epoch: The current epoch.
        first: Number of batches of this epoch that an interrupted run has finished.
    """

    lengths: Sequence[int]
    batch_size: int
    shuffle: bool
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        if len(self.lengths) < self.world_size:
            raise ValueError(
                f"{len(self.lengths)} examples are too few for {self.world_size} processes: each needs at least one. "
                "Use more users (split.*, source.*) or fewer processes (trainer.devices)."
            )
        if self.shuffle and self.batch_size % self.world_size:
            raise ValueError(
                f"training.batch_size={self.batch_size} has to be a multiple of the number of processes, "
                f"{self.world_size}, because they share a batch."
            )

    def batches(self) -> list[list[int]]:
        """The batches of the epoch over all ranks. Each has at least one example per rank."""
        lengths = np.asarray(self.lengths)
        if not self.shuffle:
            order = np.argsort(lengths, kind="stable")
            size = max(self.batch_size, self.world_size)
            batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
            if len(batches[-1]) < self.world_size:
                batches[-2:] = [batches[-2] + batches[-1]]
            return batches
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(lengths))
        order = order[: len(order) - len(order) % self.world_size]
        pool = 32 * self.batch_size  # sorting within pools: random batches with little padding
        pools = [order[i : i + pool] for i in range(0, len(order), pool)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in pools])
        batches = [order[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches()[self.first :]:
            yield batch[self.rank :: self.world_size]

    def __len__(self) -> int:
        """Number of batches. Does not build them, because the loader asks at every step."""
        size = self.batch_size if self.shuffle else max(self.batch_size, self.world_size)
        full, rest = divmod(len(self.lengths), size)
        return full + (rest >= self.world_size)


class ResumableLoader(DataLoader[int]):
    """A loader whose state is (epoch, batches yielded), so that an interrupted run resumes with the next batch."""

    def __init__(self, dataset: Any, batches: LengthBatches, *, num_workers: int) -> None:
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=dataset.collate,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        self.batches = batches

    def __iter__(self) -> Any:
        if not self.batches.shuffle:
            yield from super().__iter__()
            return
        self.dataset.draw = self.batches.epoch  # type: ignore[attr-defined]
        for taken, batch in enumerate(super().__iter__(), start=self.batches.first + 1):
            if taken == len(self.batches):  # before the yield: nothing runs after the last batch
                self.batches.epoch, self.batches.first = self.batches.epoch + 1, 0
            else:
                self.batches.first = taken
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.batches.epoch, "first": self.batches.first}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches.epoch, self.batches.first = state["epoch"], state["first"]


class NarrativeDataModule(L.LightningDataModule):
    """Data loaders of the three splits.

    Args:
        splits: Datasets by split name: `train`, `validation`, `test`. Each has `lengths`, `collate` and `draw`.
        batch_size: Examples per training step, over all processes.
        eval_batch_size: Examples per validation or generation step, in each process.
        num_workers: Number of processes that form batches; 0 for the main process.
        seed: Seed of the shuffle.
    """

    def __init__(
        self,
        splits: Mapping[str, Any],
        *,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.splits: Mapping[str, NarrativeDataset] = splits
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed

    def train_dataloader(self) -> ResumableLoader:
        overfit = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self._loader("train", self.batch_size, shuffle=not overfit)

    def val_dataloader(self) -> ResumableLoader:
        return self._loader("validation", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        module: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        layout = module.model.layout(batch)
        return replace(batch, layout=layout.pin_memory() if torch.cuda.is_available() else layout)

    def _loader(self, split: str, batch_size: int, *, shuffle: bool) -> ResumableLoader:
        dataset = self.splits[split]
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = LengthBatches(dataset.lengths, batch_size, shuffle, self.seed, rank, world)
        if shuffle and rank == 0 and (left_out := len(dataset) % world):
            logger.warning(
                "%d of %d training examples are left out of each epoch, others every time, so that %d processes take "
                "the same number of steps.",
                left_out,
                len(dataset),
                world,
            )
        return ResumableLoader(dataset, batches, num_workers=self.num_workers)


def longest_narrative(texts: Sequence[str], *, tokenizer: Any, max_narrative_tokens: int | None) -> int:
    """Number of tokens of the longest narrative, including its end token."""
    return 1 + max((len(ids[:max_narrative_tokens]) for ids in token_ids(tokenizer, texts)), default=0)


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text. The name of a special token inside a text is read as letters."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [np.asarray(ids, dtype=np.int64) for ids in found]


def _newest(lines: list[np.ndarray], room: int) -> list[np.ndarray]:
    """The latest lines that fit, oldest first. If none fits, the beginning of the latest one."""
    kept: list[np.ndarray] = []
    for line in reversed(lines):
        if len(line) > room:
            return kept or [line[: max(0, room)]]
        kept.insert(0, line)
        room -= len(line)
    return kept
