"""From a composed config to the parts of a training run: data, model, Lightning module."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from omegaconf import DictConfig

from regen.data.datamodule import NarrativeDataModule, NarrativeDataset
from regen.data.histories import Example, build_examples
from regen.data.history_words import HistoryWords
from regen.data.prepare import load_tables
from regen.data.tables import DataError
from regen.embeddings.encode import Split
from regen.models.language_model import LanguageModel
from regen.models.soft_token_lm import SoftTokenLM
from regen.models.warm_start import initialise
from regen.pipeline import (
    TEXT,
    data_artefact,
    encoded_artefacts,
    encoder_parts,
    instantiate,
    interaction_vectors,
    plain,
)
from regen.storage.artefacts import Artefact
from regen.storage.identity import LIBRARIES
from regen.training.preflight import check_data

logger = logging.getLogger(__name__)
RUN_OPTIONS = ("name", "lr", "init", "ridge")
START_SAMPLE = 20_000  # training examples from which an adapter's start is computed


@dataclass(frozen=True)
class Inputs:
    """The artefacts a cell reads."""

    prepared: Artefact
    encoded: dict[str, Artefact]

    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each artefact by its name."""
        return {
            "prepared": self.prepared.fingerprint,
            **{name: made.fingerprint for name, made in self.encoded.items()},
        }


def build_inputs(cfg: DictConfig) -> Inputs:
    """Builds what is missing of the artefacts that this cell's encoder needs."""
    prepared = data_artefact(cfg)
    check_data(cfg, prepared.path)
    return Inputs(prepared, encoded_artefacts(cfg, encoder_parts(cfg.encoder.name), prepared))


def load_language_model(cfg: DictConfig) -> LanguageModel:
    """The pristine LM of the config, loaded once a process."""
    lm: LanguageModel = instantiate(plain(cfg.lm))
    return lm


def build_data(cfg: DictConfig, inputs: Inputs, lm: LanguageModel) -> NarrativeDataModule:
    """Examples of the chosen features, split by user.

    Raises:
        DataError: If history, prompt and narrative do not fit into the LM's window.
    """
    tables = load_tables(inputs.prepared.path)
    features = plain(cfg.feature)
    withhold = {name: feature["withhold_final_review"] for name, feature in features.items()}
    examples = build_examples(tables, withhold=withhold, max_history=cfg.data.max_history)
    vectors = interaction_vectors(cfg, inputs.prepared, inputs.encoded)
    words = HistoryWords(tables) if cfg.encoder.name == TEXT else None
    by_split = _split(examples, Split(**plain(cfg.split)))
    datasets = {
        name: NarrativeDataset(
            part,
            vectors,
            tokenizer=lm.tokenizer,
            prompts={feature: str(options["prompt"]) for feature, options in features.items()},
            window=lm.window,
            max_narrative_tokens=cfg.data.max_narrative_tokens,
            words=words,
            max_words=cfg.encoder.max_tokens if words is not None else 0,
        )
        for name, part in by_split.items()
    }
    return NarrativeDataModule(
        datasets,
        batch_size=cfg.training.batch_size,
        eval_batch_size=cfg.evaluation.batch_size,
        num_workers=cfg.trainer.num_workers,
        seed=cfg.seed,
    )


def build_model(cfg: DictConfig, data: NarrativeDataModule, lm: LanguageModel, *, start: bool) -> SoftTokenLM:
    """Adapter in front of the tuned LM.

    Args:
        cfg: The run's config.
        data: Gives the training examples for the adapter's start.
        lm: The pristine LM; it stays so.
        start: Whether to initialise the adapter; a model whose weights are loaded next needs no start.
    """
    torch.manual_seed(cfg.seed)
    train = data.splits["train"]
    tuned = instantiate_own(cfg.tuning, lm.working_copy(trainable=cfg.tuning.name == "full").model)
    if cfg.encoder.name == TEXT:
        return SoftTokenLM(tuned, None, bos_token_id=lm.tokenizer.bos_token_id, fast_path=lm.fast_path)
    adapter = instantiate_own(cfg.adapter, train.vectors.dim, lm.width)  # type: ignore[attr-defined]
    positions = cfg.data.max_history if cfg.encoder.name == "none" else None
    model = SoftTokenLM(
        tuned,
        adapter,
        bos_token_id=lm.tokenizer.bos_token_id,
        learned_positions=positions,
        fast_path=lm.fast_path,
    )
    if start:
        rows = range(min(len(train), START_SAMPLE))
        histories = [_entering(model, train, row) for row in rows]
        initialise(
            adapter,
            init=plain(cfg.adapter)["init"],
            strength=cfg.adapter.ridge,
            inputs=torch.stack([history.mean(dim=0) for history in histories]),
            targets=_mean_narrative_embeddings(lm, [train.targets[row] for row in rows]),
            interactions=torch.cat(histories),
            norm=lm.embedding_norm(),
        )
    return model


def instantiate_own(node: DictConfig, *args: Any) -> Any:
    """Builds what a node names from the options that are its own; name, rate and start concern the run."""
    return instantiate({key: value for key, value in plain(node).items() if key not in RUN_OPTIONS}, *args)


@torch.no_grad()
def _entering(model: SoftTokenLM, train: NarrativeDataset, row: int) -> Float[torch.Tensor, "history dim"]:
    return model.inputs(torch.from_numpy(train.history(row))[None])[0].detach()


@torch.no_grad()
def _mean_narrative_embeddings(lm: LanguageModel, targets: list[np.ndarray]) -> Float[torch.Tensor, "examples lm_dim"]:
    embed = lm.model.get_input_embeddings()
    return torch.stack([embed(torch.from_numpy(ids)).float().mean(dim=0) for ids in targets])


def _split(examples: list[Example], split: Split) -> dict[str, list[Example]]:
    names = split.of(pl.Series([example.user_id for example in examples], dtype=pl.String)).to_list()
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for example, name in zip(examples, names, strict=True):
        parts[name].append(example)
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"No narrative of the {name} split is left: their items, or all of their users', have no title."
            )
    logger.info("narratives: %s", ", ".join(f"{len(part):,} {name}" for name, part in parts.items()))
    return parts


def library_versions() -> dict[str, str]:
    """Versions that a checkpoint's meaning depends on."""
    from importlib import metadata

    return {name: metadata.version(name) for name in ("regen", *LIBRARIES)}
