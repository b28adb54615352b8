"""Narratives of a trained model for a split's users."""

import difflib
from collections.abc import Mapping
from typing import Any

import polars as pl
import torch
from tqdm import tqdm
from transformers import GenerationConfig

from regen.data.datamodule import LengthBatches, NarrativeDataset
from regen.models.narrative_model import NarrativeModel


def generation_config(options: Mapping[str, Any], tokenizer: Any) -> GenerationConfig:
    """A `GenerationConfig` with the tokenizer's end and padding tokens.

    Raises:
        ValueError: If an option is none of transformers'; it names the nearest right one.
    """
    known = GenerationConfig().to_dict()
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"evaluation.generation.{name}: transformers' GenerationConfig has no such option.{hint}")
    return GenerationConfig(
        **options, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, use_cache=True
    )


def generate_narratives(
    model: NarrativeModel,
    dataset: NarrativeDataset,
    *,
    tokenizer: Any,
    generation: Mapping[str, Any],
    batch_size: int,
    seed: int = 0,
) -> pl.DataFrame:
    """One narrative for every example.

    Args:
        model: In evaluation mode, on the device to use.
        dataset: A split.
        tokenizer: The LM's.
        generation: Options of a `GenerationConfig`; greedy where they say nothing.
        batch_size: Rows of one `generate` call; rows of similar length share one.
        seed: Of sampling, where the options ask for it.

    Returns:
        Columns `user_id`, `feature`, `item_id`, `prediction`, `reference`, in the order of the split.
    """
    config = generation_config({"do_sample": False, **generation}, tokenizer)
    device = next(model.parameters()).device
    texts = [""] * len(dataset)
    torch.manual_seed(seed)
    with tqdm(total=len(dataset), desc="generate", unit="narrative") as bar:
        for indices in LengthBatches(dataset.lengths, batch_size, shuffle=False):
            batch = dataset.collate(indices)
            batch = type(batch)(**{name: tensor.to(device) for name, tensor in vars(batch).items()})
            decoded = tokenizer.batch_decode(model.generate(batch, config), skip_special_tokens=True)
            for index, text in zip(indices, decoded, strict=True):
                texts[index] = text.strip()
            bar.update(len(indices))
    examples = dataset.examples
    return pl.DataFrame(
        {
            "user_id": [example.user_id for example in examples],
            "feature": [example.feature for example in examples],
            "item_id": pl.Series([example.item_id for example in examples], dtype=pl.String),
            "prediction": texts,
            "reference": [example.text for example in examples],
        }
    )
