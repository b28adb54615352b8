"""Decodes the narratives of encoded histories: greedily, by sampling, or piece by piece."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import GenerationConfig

from regen.data.batch import Batch, Rows
from regen.generation.narratives import decode_rows, generation_config
from regen.generation.native_decoder import NativeDecoder, greedy_decoder
from regen.generation.prepared import Prepared, collate
from regen.generation.row_decoder import RowDecoder
from regen.generation.text_pieces import TextPieces, decoded
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime.costs import Stopwatch

ROWS = 64  # histories decoded together


@dataclass(frozen=True)
class Decoding:
    """A model with its generation settings.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: The LM's tokenizer.
        config: Generation settings.
        window: The most positions that the LM reads.
    """

    model: SoftTokenLM
    tokenizer: Any
    config: GenerationConfig
    window: int

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a narrative."""
        return frozenset([int(self.tokenizer.eos_token_id)])

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of a narrative."""
        return int(self.config.max_new_tokens)

    @property
    def beyond_greedy(self) -> list[str]:
        """Names of the settings that differ from plain greedy decoding."""
        plain = generation_config({"do_sample": False, "max_new_tokens": self.max_new_tokens}, self.tokenizer)
        ours, theirs = _settings(self.config), _settings(plain)
        return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))

    def collate(self, prepared: Sequence[Prepared]) -> Batch:
        """Pads histories into one batch on the model's device."""
        return collate(list(prepared), pad=int(self.tokenizer.pad_token_id)).on(self.model.device)

    def limit(self, prepared: Prepared) -> int:
        """The most tokens of this narrative, at least one."""
        return min(self.max_new_tokens, self.window - prepared.prefix)

    def texts(self, prepared: Sequence[Prepared], *, temperature: float | None, seed: int) -> list[str]:
        """One narrative for each history, in order.

        Args:
            prepared: The histories.
            temperature: Sampling temperature above 0; None follows the generation settings.
            seed: Seed of sampling.
        """
        if temperature is None:
            return self._sampled(prepared, self.config, seed) if self.beyond_greedy else self._greedy(prepared)
        options = {"max_new_tokens": self.max_new_tokens, "do_sample": True, "temperature": float(temperature)}
        return self._sampled(prepared, generation_config(options, self.tokenizer), seed)

    def stream(self, prepared: Prepared) -> Iterator[str]:
        """One narrative piece by piece, or in one piece if the settings are not greedy."""
        if self.beyond_greedy:
            yield from self.texts([prepared], temperature=None, seed=0)
            return
        limit = self.limit(prepared)
        decoder = greedy_decoder(self.model, slots=1, length=prepared.prefix + limit, stop_ids=self.stop_ids)
        yield from streamed_text(written_tokens(decoder, self.collate([prepared]), limit), tokenizer=self.tokenizer)

    def _greedy(self, prepared: Sequence[Prepared]) -> list[str]:
        texts = [""] * len(prepared)
        limits = [self.limit(one) for one in prepared]
        rows = _Rows(self, prepared)
        written = decode_rows(self.model, rows, limits=limits, stop_ids=self.stop_ids, rows=ROWS, watch=Stopwatch())
        for at, ids in written:
            texts[at] = decoded(self.tokenizer, ids)
        return texts

    def _sampled(self, prepared: Sequence[Prepared], config: GenerationConfig, seed: int) -> list[str]:
        texts: list[str] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for limit, group in groupby(prepared, key=self.limit):  # `generate` has one limit for all rows
                rows, within = list(group), copy(config)
                within.max_new_tokens = limit
                for first in range(0, len(rows), ROWS):
                    ids = self.model.generate(self.collate(rows[first : first + ROWS]), within)
                    texts += [decoded(self.tokenizer, row) for row in ids.tolist()]
        return texts


@dataclass(frozen=True)
class _Rows:
    """Histories in the form that `decode_rows` reads."""

    decoding: Decoding
    prepared: Sequence[Prepared]

    @property
    def prefixes(self) -> list[int]:
        return [one.prefix for one in self.prepared]

    def collate(self, indices: Sequence[int]) -> Batch:
        return self.decoding.collate([self.prepared[index] for index in indices])


def written_tokens(decoder: RowDecoder | NativeDecoder, batch: Rows, limit: int) -> Iterator[int]:
    """Token ids of one narrative, as they are written.

    Args:
        decoder: Empty, with one slot or more.
        batch: A batch of one row.
        limit: The most tokens.
    """
    tokens = decoder.add(batch, [0], [limit])
    while tokens:
        yield tokens[0].id
        tokens = decoder.step()


def streamed_text(tokens: Iterable[int], *, tokenizer: Any) -> Iterator[str]:
    """The text of one narrative in pieces, from its token ids as they are written."""
    pieces = TextPieces(tokenizer)
    for token in tokens:
        if piece := pieces.add(token):
            yield piece
    if rest := pieces.end():
        yield rest


def _settings(config: GenerationConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}
