"""Generates the narratives of a trained model for the users of a split."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch
from tqdm import tqdm
from transformers import GenerationConfig

from regen.data.datamodule import LengthBatches
from regen.data.histories import Example
from regen.generation.checks import check_option_names
from regen.generation.native_decoder import greedy_decoder
from regen.generation.prepared import Prefixes
from regen.generation.row_decoder import row_bytes
from regen.generation.vllm_decoder import VLLMServer, decode_at_vllm
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime.costs import Stopwatch
from regen.runtime.narrow_weights import narrow_weights
from regen.runtime.packed_weights import packed_weights

CACHE_BYTES = 2 << 30  # limit of the key-value cache; of longer rows, fewer are decoded together
PREDICTION_COLUMNS = dict.fromkeys(("user_id", "feature", "item_id", "prediction", "reference"), pl.String())


class Narratives(Prefixes, Protocol):
    """A split with references."""

    examples: list[Example]
    lengths: list[int]

    def __len__(self) -> int:
        """How many narratives there are."""


def generation_config(options: Mapping[str, Any], tokenizer: Any) -> GenerationConfig:
    """A `GenerationConfig` with the tokenizer's end and padding tokens.

    Raises:
        ValueError: If transformers has no such option; names the most similar one.
    """
    check_option_names(options)
    return GenerationConfig(
        **options, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, use_cache=True
    )


def generate_narratives(
    model: SoftTokenLM,
    dataset: Narratives,
    *,
    tokenizer: Any,
    generation: Mapping[str, Any],
    batch_size: int,
    seed: int = 0,
    precision: str | None = None,
    watch: Stopwatch | None = None,
    server: VLLMServer | None = None,
) -> pl.DataFrame:
    """Writes one narrative for every example.

    Args:
        model: The model, in evaluation mode, on the device to use.
        dataset: A split.
        tokenizer: The LM's tokenizer.
        generation: Options of a `GenerationConfig`; greedy by default.
        batch_size: The most rows decoded together.
        seed: Seed of sampling.
        precision: `int8` for 8-bit weights of the LM, see `narrow_weights`.
        watch: Measures `prefill` and `generation`; with sampling or a server only `generation`.
        server: Decodes instead of this process.

    Returns:
        Columns `user_id`, `feature`, `item_id`, `prediction`, `reference`, in the order of the split.

    Raises:
        ValueError: If a server is given and the options ask for sampling, or this machine lacks the precision.
    """
    config = generation_config({"do_sample": False, **generation}, tokenizer)
    torch.manual_seed(seed)
    watch = watch or Stopwatch()
    others = generation.keys() - {"max_new_tokens"}
    if not config.do_sample and "max_new_tokens" in generation and others <= {"do_sample"}:
        written = _greedy(model, dataset, config, batch_size, watch, server)
    elif server is not None:
        raise ValueError(
            f"evaluation.endpoint={server.base_url} decodes greedily, and evaluation.generation asks for "
            f"{', '.join(sorted(others))}. Leave one of them out."
        )
    else:
        written = _sampled(model, dataset, config, batch_size, watch)
    texts = [""] * len(dataset)
    bar = tqdm(total=len(dataset), desc="generate", unit="narrative")
    with bar, narrow_weights(model.lm, precision):
        for index, ids in written:
            texts[index] = tokenizer.decode(ids, skip_special_tokens=True).strip()
            bar.update()
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


def _greedy(
    model: SoftTokenLM,
    dataset: Narratives,
    config: GenerationConfig,
    rows: int,
    watch: Stopwatch,
    server: VLLMServer | None,
) -> Iterator[tuple[int, list[int]]]:
    limits, stop_ids = [int(config.max_new_tokens)] * len(dataset), {config.eos_token_id}
    if server is None:
        return decode_rows(model, dataset, limits=limits, stop_ids=stop_ids, rows=rows, watch=watch)
    with watch.timing("generation"):
        written = decode_at_vllm(server, model, dataset, limits=limits, stop_ids=stop_ids, rows=rows)
    return iter(written.items())


def decode_rows(
    model: SoftTokenLM,
    dataset: Prefixes,
    *,
    limits: Sequence[int],
    stop_ids: Collection[int],
    rows: int,
    watch: Stopwatch,
) -> Iterator[tuple[int, list[int]]]:
    """Decodes every example greedily.

    Args:
        model: The model, in evaluation mode, on the device to use.
        dataset: A split, or another object with its interface.
        limits: The most tokens of each narrative.
        stop_ids: Tokens that end a narrative.
        rows: The most rows decoded together; fewer if their cache would exceed `CACHE_BYTES`.
        watch: Measures `prefill` and `generation`.

    Yields:
        Index of an example and its token ids with the end token, as soon as the row ends.
    """
    prefixes = dataset.prefixes
    length = max(prefixes) + max(limits)
    slots = min(rows, len(prefixes))
    if model.fast_path.rows:
        slots = max(1, min(slots, CACHE_BYTES // row_bytes(model, length)))
    device = model.device
    decoder = greedy_decoder(model, slots=slots, length=length, stop_ids=stop_ids)
    waiting = np.argsort(prefixes, kind="stable").tolist()
    entering = max(1, slots // 8)  # rows enter in groups, because prefixes are read faster together
    ids: dict[int, list[int]] = {}
    with packed_weights(model.lm, backward=False):
        while waiting or decoder.keys:
            tokens = []
            while waiting and decoder.free >= min(entering, len(waiting)):
                now, waiting = waiting[:entering], waiting[entering:]
                batch = dataset.collate(now).on(device)
                with watch.timing("prefill"):
                    tokens += decoder.add(batch, now, [limits[index] for index in now])
            with watch.timing("generation"):
                tokens += decoder.step()
            for token in tokens:
                ids.setdefault(token.key, []).append(token.id)
                if token.last:
                    yield token.key, ids.pop(token.key)


def _sampled(
    model: SoftTokenLM, dataset: Narratives, config: GenerationConfig, rows: int, watch: Stopwatch
) -> Iterator[tuple[int, list[int]]]:
    """Decodes by `transformers`' `generate`, in batches of similar lengths."""
    for indices in LengthBatches(dataset.lengths, rows, shuffle=False):
        with watch.timing("generation"):
            ids = model.generate(dataset.collate(indices).on(model.device), config)
        yield from zip(indices, ids.tolist(), strict=True)
