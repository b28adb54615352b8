"""Rows that come and go are written as `generate` writes each of them alone."""

import pytest
import torch
from test_soft_token_lm import K, make_batch, one_row
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from regen.generation.row_decoder import RowDecoder, row_bytes
from regen.models.adapter import LinearAdapter
from regen.models.soft_token_lm import SoftTokenLM

STOP = 7
SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": STOP,
}
HISTORIES, PROMPTS = [1, 7, 3, 2, 5, 9, 4], [3, 2, 5, 1, 4, 4, 2]


@pytest.fixture(scope="module", params=["grouped queries", "sliding window"])
def model(request):
    torch.manual_seed(0)
    if request.param == "grouped queries":
        lm = LlamaForCausalLM(LlamaConfig(**SHAPE))
    else:
        config = Gemma3TextConfig(**SHAPE, sliding_window=6, layer_types=["sliding_attention", "full_attention"])
        lm = Gemma3ForCausalLM(config)
    nn.init.normal_(lm.get_input_embeddings().weight, std=1.0)  # a random LM that says different things
    return SoftTokenLM(lm.eval(), LinearAdapter(K, 32), bos_token_id=1).eval()


@pytest.fixture(scope="module")
def batch():
    return make_batch(HISTORIES, PROMPTS, [1] * len(HISTORIES))


@pytest.fixture(scope="module")
def alone(model, batch):
    config = GenerationConfig(max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=STOP)
    return [model.generate(one_row(batch, row), config)[0].tolist() for row in range(len(HISTORIES))]


def written(decoder, tokens, texts):
    for token in tokens:
        texts.setdefault(token.key, []).append(token.id)


def test_rows_that_come_and_go_are_written_as_alone(model, batch, alone):
    decoder = RowDecoder(model, slots=3, length=60, stop_ids={STOP})
    limits = [20, 4, 11, 1, 20, 7, 20]
    texts: dict[int, list[int]] = {}
    waiting = list(range(len(HISTORIES)))
    while waiting or decoder.keys:
        if waiting and decoder.free:
            row = waiting.pop(0)
            written(decoder, decoder.add(one_row(batch, row), [row], [limits[row]]), texts)
        written(decoder, decoder.step(), texts)
    assert len({tuple(text) for text in alone}) > 3
    assert texts == {row: alone[row][: limits[row]] for row in range(len(HISTORIES))}


def test_rows_that_enter_together_are_written_as_alone(model, batch, alone):
    decoder = RowDecoder(model, slots=8, length=60, stop_ids={STOP})
    texts: dict[int, list[int]] = {}
    written(decoder, decoder.add(batch, range(len(HISTORIES)), [20] * len(HISTORIES)), texts)
    while decoder.keys:
        written(decoder, decoder.step(), texts)
    assert [texts[row] for row in range(len(HISTORIES))] == alone


def test_a_stop_token_ends_its_row(model, batch, alone):
    stop = alone[0][5]
    decoder = RowDecoder(model, slots=2, length=60, stop_ids={stop})
    tokens = decoder.add(one_row(batch, 0), [0], [20])
    while decoder.keys:
        tokens += decoder.step()
    assert [token.id for token in tokens] == alone[0][: alone[0].index(stop) + 1]
    assert [token.last for token in tokens] == [False] * (len(tokens) - 1) + [True]


def test_a_dropped_row_frees_its_slot_and_disturbs_nobody(model, batch, alone):
    decoder = RowDecoder(model, slots=7, length=60, stop_ids={STOP})
    texts: dict[int, list[int]] = {}
    written(decoder, decoder.add(batch, range(7), [20] * 7), texts)
    decoder.drop(0)
    decoder.drop(0)
    assert decoder.free == 1
    while decoder.keys:
        written(decoder, decoder.step(), texts)
    assert texts == {0: alone[0][:1], **{row: alone[row] for row in range(1, 7)}}


def test_what_does_not_fit_is_refused(model, batch):
    decoder = RowDecoder(model, slots=2, length=30, stop_ids={STOP})
    with pytest.raises(ValueError, match="7 rows do not fit into 2 free slots"):
        decoder.add(batch, range(7), [5] * 7)
    with pytest.raises(ValueError, match="needs 35 positions; a slot has 30"):
        decoder.add(one_row(batch, 0), [0], [30])
    assert decoder.step() == []


def test_row_bytes_is_what_the_cache_takes(model, batch):
    decoder = RowDecoder(model, slots=3, length=40, stop_ids={STOP})
    decoder.add(one_row(batch, 0), [0], [5])
    held = sum(kept.nbytes for both in decoder._cache.layers.values() for kept in both)
    assert held == 3 * row_bytes(model, 40)
