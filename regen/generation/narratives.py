"""Narratives of a trained model for a split's users."""

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

CACHE_BYTES = 2 << 30  # of keys and values; longer rows are decoded fewer at a time
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
        ValueError: If an option is none of transformers'; it names the nearest right one.
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
    """One narrative for every example.

    Args:
        model: In evaluation mode, on the device to use.
        dataset: A split.
        tokenizer: The LM's.
        generation: Options of a `GenerationConfig`; greedy where they say nothing.
        batch_size: The most rows decoded at one time.
        seed: Of sampling, where the options ask for it.
        precision: `int8` for narrower weights of the LM, see `narrow_weights`.
        watch: Takes the time of `prefill` and `generation`; of `generation` alone where the options ask for sampling
            or a server decodes.
        server: Decodes instead of this process.

    Returns:
        Columns `user_id`, `feature`, `item_id`, `prediction`, `reference`, in the order of the split.

    Raises:
        ValueError: If a server is to sample, or this machine has no such precision.
    """
    config = generation_config({"do_sample": False, **generation}, tokenizer)
    torch.manual_seed(seed)
    greedily = not config.do_sample and set(generation) - {"do_sample"} == {"max_new_tokens"}
    watch = watch or Stopwatch()
    if greedily:
        limits, stop_ids = [int(config.max_new_tokens)] * len(dataset), {config.eos_token_id}
        if server is None:
            written = decode_rows(model, dataset, limits=limits, stop_ids=stop_ids, rows=batch_size, watch=watch)
        else:
            with watch.timing("generation"):
                at_server = decode_at_vllm(server, model, dataset, limits=limits, stop_ids=stop_ids, rows=batch_size)
                written = iter(list(at_server))
    elif server is not None:
        raise ValueError(
            f"evaluation.endpoint={server.base_url} decodes greedily, and evaluation.generation asks for "
            f"{', '.join(sorted(set(generation) - {'max_new_tokens'}))}. Leave one of them out."
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


def decode_rows(
    model: SoftTokenLM,
    dataset: Prefixes,
    *,
    limits: Sequence[int],
    stop_ids: Collection[int],
    rows: int,
    watch: Stopwatch,
) -> Iterator[tuple[int, list[int]]]:
    """Greedy token ids of every example, each as its row ends.

    Args:
        model: In evaluation mode, on the device to use.
        dataset: A split, or whatever answers like one.
        limits: The most tokens of each narrative.
        stop_ids: Tokens that end one.
        rows: The most decoded at one time; fewer where their cache would take more than `CACHE_BYTES`.
        watch: Takes the time of `prefill` and `generation`.

    Yields:
        Index of the example, token ids with the end token.
    """
    prefixes = dataset.prefixes
    length = max(prefixes) + max(limits)
    slots = min(rows, len(prefixes))
    if model.fast_path.rows:
        slots = max(1, min(slots, CACHE_BYTES // row_bytes(model, length)))
    device = model.device
    decoder = greedy_decoder(model, slots=slots, length=length, stop_ids=stop_ids)
    waiting = np.argsort(prefixes, kind="stable").tolist()
    entering = max(1, slots // 8)  # at once, so that reading a prefix is not done row by row
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
    """Text by any other rule, through `transformers`, a batch of similar lengths at a time."""
    for indices in LengthBatches(dataset.lengths, rows, shuffle=False):
        with watch.timing("generation"):
            ids = model.generate(dataset.collate(indices).on(model.device), config)
        yield from zip(indices, ids.tolist(), strict=True)
