"""Builds the data module, the model and the Lightning module of a run from its config."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch

from regen.config.schema import TrainConfig
from regen.data.datamodule import NarrativeDataModule, NarrativeDataset, longest_narrative
from regen.data.histories import Example, build_examples
from regen.data.history_words import HistoryWords
from regen.data.prepare import load_tables
from regen.data.splits import NAMES
from regen.data.tables import DataError, Tables
from regen.embeddings.encode_critiques import CRITIQUES, load_critiques
from regen.embeddings.fusion import InteractionVectors
from regen.embeddings.parts import TEXT
from regen.generation.lm_check import fast_path_of
from regen.models.language_model import LanguageModel
from regen.models.soft_token_lm import SoftTokenLM
from regen.models.warm_start import initialise
from regen.runtime.device import ON_CUDA, device_of
from regen.storage.identity import Inputs
from regen.training.module import NarrativeModule
from regen.training.recommendation import NextItemData, build_next_item_data, build_next_item_model
from regen.training.schedules import schedule_of

logger = logging.getLogger(__name__)
START_SAMPLE = 20_000  # training examples from which the adapter is initialised


def build_data(
    config: TrainConfig,
    inputs: Inputs,
    vectors: InteractionVectors,
    lm: LanguageModel,
    *,
    folder: Path | None = None,
) -> NarrativeDataModule:
    """The data module of a run: examples of the chosen features in three splits.

    Args:
        config: The run's config.
        inputs: Artefacts of the run.
        vectors: The fused vectors that the adapter reads.
        lm: The LM, for its tokenizer and window.
        folder: Folder of the run, which keeps the fitted closed form of a recommender.

    Raises:
        DataError: If a split is empty, or history, prompt and narrative do not fit into the LM's window.
    """
    if config.task.ranks:
        critiques = load_critiques(inputs.encoded[CRITIQUES]) if config.data.critiques else None
        return build_next_item_data(config, inputs, vectors, lm, critiques, folder=folder)
    tables = load_tables(inputs.prepared.path)
    withhold = {name: feature.withhold_final_review for name, feature in config.feature.items()}
    examples = build_examples(tables, withhold=withhold, max_history=config.data.max_history, split=config.split)
    make = dataset_maker(config, tables, vectors, lm)
    datasets = {name: make(part) for name, part in _split(examples).items()}
    datasets["test"] = _limited(datasets["test"], config)
    return NarrativeDataModule(
        datasets,
        batch_size=config.training.batch_size,
        eval_batch_size=config.evaluation.batch_size,
        num_workers=_workers(config),
        seed=config.seed,
    )


def dataset_maker(
    config: TrainConfig, tables: Tables, vectors: InteractionVectors, lm: LanguageModel
) -> Callable[[Sequence[Example]], NarrativeDataset]:
    """Returns a function that makes a run's dataset from examples."""
    as_words = config.encoder.name == TEXT
    reserved = 0
    if as_words:  # of all splits, so that histories have the same room in each split and in any part of one
        told = tables.narratives.filter(pl.col("feature").is_in(list(config.feature)))["text"].drop_nulls().to_list()
        most = config.data.max_narrative_tokens
        reserved = longest_narrative(told, tokenizer=lm.tokenizer, max_narrative_tokens=most)
    return partial(
        NarrativeDataset,
        vectors=vectors,
        tokenizer=lm.tokenizer,
        prompts={name: feature.prompt for name, feature in config.feature.items()},
        window=lm.window,
        max_narrative_tokens=config.data.max_narrative_tokens,
        words=HistoryWords(tables) if as_words else None,
        max_words=config.encoder.max_tokens or 0 if as_words else 0,
        reserved=reserved,
    )


def build_model(config: TrainConfig, data: NarrativeDataModule, lm: LanguageModel, *, start: bool) -> SoftTokenLM:
    """Builds the adapter and the tuned LM of a run.

    Args:
        config: The run's config.
        data: The run's data.
        lm: The LM as loaded; it is not changed.
        start: Whether to initialise the adapter from training examples. Leave it out if weights are loaded next.
    """
    if isinstance(data, NextItemData):
        return build_next_item_model(config, data, lm, start=start)
    torch.manual_seed(config.seed)
    train = data.splits["train"]
    path = fast_path_of(lm)
    tuned = config.tuning.build(lm.working_copy(trainable=config.tuning.name == "full").model)
    adapter = None
    if config.encoder.name != TEXT:
        adapter = config.adapter.build(train.vectors.dim, lm.width)  # type: ignore[attr-defined]
    model = SoftTokenLM(
        tuned,
        adapter,
        bos_token_id=lm.tokenizer.bos_token_id,
        learned_positions=config.data.max_history if config.encoder.name == "none" else None,
        fast_path=path,
    )
    if start and adapter is not None:
        rows = range(min(len(train), START_SAMPLE))
        with torch.no_grad():
            histories = [model.inputs(torch.from_numpy(train.history(row))[None])[0] for row in rows]
        initialise(
            adapter,
            ridge=config.adapter.ridge,
            inputs=torch.stack([history.mean(dim=0) for history in histories]),
            targets=lm.mean_embeddings([train.targets[row] for row in rows]),
            interactions=torch.cat(histories),
            norm=lm.embedding_norm(),
        )
    return model


def build_module(
    config: TrainConfig, model: SoftTokenLM, provenance: Mapping[str, Any] | None = None
) -> NarrativeModule:
    """The Lightning module of a run, with the config's rates, optimizer and schedule.

    Args:
        config: The run's config.
        model: The model of `build_model`.
        provenance: Saved in every checkpoint.
    """
    return NarrativeModule(
        model,
        adapter_lr=config.adapter.lr,
        lm_lr=config.tuning.lr,
        optimizer=partial(config.optimizer.build, **_fused(config)),
        schedule=schedule_of(config.scheduler),
        provenance=provenance,
    )


def _fused(config: TrainConfig) -> dict[str, bool]:
    """Options of the optimizer: AdamW is fused on a GPU, except with loss scaling, which does not allow it."""
    on_gpu = device_of(config.trainer.accelerator).type == "cuda"
    allowed = config.optimizer.target == "torch.optim.AdamW" and config.trainer.precision != "16-mixed"
    return {"fused": True} if on_gpu and allowed else {}


def _workers(config: TrainConfig) -> int:
    if config.training.num_workers is not None:
        return config.training.num_workers
    return 2 if config.trainer.accelerator in ON_CUDA else 0


def _limited(test: NarrativeDataset, config: TrainConfig) -> NarrativeDataset:
    """The test examples, fewer with `limit_test_batches` or `fast_dev_run`."""
    trainer, size = config.trainer, config.evaluation.batch_size
    limit = int(trainer.fast_dev_run) or trainer.limit_test_batches
    if limit is None:
        return test
    return test.part(0, max(2, limit * size if isinstance(limit, int) else round(limit * len(test))))


def _split(examples: list[Example]) -> dict[str, list[Example]]:
    parts = {name: [example for example in examples if example.split == name] for name in NAMES}
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"The {name} split has no narratives whose items, or any other items of the user, have a title."
            )
    logger.info("narratives: %s", ", ".join(f"{len(part):,} {name}" for name, part in parts.items()))
    return parts
