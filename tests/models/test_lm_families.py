"""Language models of thirty architectures: loss, gradients and texts are those of plain `transformers`, or it is refused."""

import copy
import json

import pytest
import torch
from lm_families import FAMILIES, NATIVE, UNFIT, family
from test_soft_token_lm import K, make_batch, one_row
from torch import nn
from transformers import AutoTokenizer, GenerationConfig

from regen.generation.lm_check import UnfitLanguageModelError, checked_fast_path, fast_path
from regen.generation.native_decoder import greedy_decoder
from regen.models.adapter import LinearAdapter
from regen.models.language_model import add_lora, freeze, tune_fully
from regen.models.soft_token_lm import SoftTokenLM

FEW = ["Mistral", "GPT2", "Gemma2", "GPTJ", "Lfm2"]  # one of each kind; all thirty take a minute
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0}
STOP = 7
pytestmark = pytest.mark.filterwarnings("ignore")  # of architectures about their own options and kernels

names = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in FAMILIES if name not in UNFIT],
)


@pytest.fixture(scope="module")
def lms():
    """Each family is built and checked once."""
    made = {}

    def lm(name):
        if name not in made:
            built = family(name)
            made[name] = built, fast_path(built)
        return copy.deepcopy(made[name][0]), made[name][1]

    return lm


def narrator(lm, path):
    torch.manual_seed(1)
    return SoftTokenLM(lm, LinearAdapter(K, 32), bos_token_id=1, fast_path=path).eval()


@names
def test_the_check_finds_what_is_ours(name, lms):
    _, path = lms(name)
    ours = name not in NATIVE
    assert (path.attention, path.head, path.rows) == (ours, True, ours)
    assert bool(path.reason) != ours


@names
def test_loss_and_gradients_are_those_of_plain_transformers(name, lms):
    lm, path = lms(name)
    model = narrator(lm, path)
    batch = make_batch([1, 9, 4], [3, 2, 5], [6, 3, 1])
    plain = sum(plain_loss(model, one_row(batch, row)) for row in range(3))
    expected = torch.autograd.grad(plain, list(model.parameters()), allow_unused=True)
    loss, tokens = model(batch)
    assert int(tokens) == 10
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-3)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


def plain_loss(model, row):
    """The loss of one row without padding, by the LM's own forward pass and PyTorch's loss."""
    prefix, _ = model.prefix(row)
    said = model.lm.get_input_embeddings()(row.target[:, :-1])
    logits = model.lm(inputs_embeds=torch.cat([prefix, said], dim=1), use_cache=False).logits[0]
    return nn.functional.cross_entropy(logits[prefix.shape[1] - 1 :], row.target[0], reduction="sum")


@names
def test_greedy_texts_are_those_of_generate(name, lms):
    lm, path = lms(name)
    model = narrator(lm, path)
    batch = make_batch([1, 9, 4, 2], [3, 2, 5, 1], [1] * 4)
    decoder = greedy_decoder(model, slots=4, length=40, stop_ids={STOP})
    limits, texts = [12, 5, 12, 9], {row: [] for row in range(4)}
    tokens = decoder.add(batch, range(4), limits)
    while decoder.keys or tokens:
        for token in tokens:
            texts[token.key].append(token.id)
        tokens = decoder.step()
    for row, limit in enumerate(limits):
        config = GenerationConfig(max_new_tokens=limit, do_sample=False, pad_token_id=0, eos_token_id=STOP)
        prefix, mask = model.prefix(one_row(batch, row))
        alone = lm.generate(inputs_embeds=prefix, attention_mask=mask.long(), generation_config=config)[0].tolist()
        assert texts[row] == alone


@names
@pytest.mark.parametrize("tuning", ["lora", "frozen", "full"])
def test_a_step_trains_what_it_should(name, tuning, lms):
    lm, path = lms(name)
    targets = {"Mamba": ["in_proj", "x_proj"]}.get(name)  # PEFT refuses all linear layers of a Mamba
    tuned = {
        "lora": lambda: add_lora(lm, **LORA, target_modules=targets),
        "frozen": lambda: freeze(lm),
        "full": lambda: tune_fully(lm),
    }[tuning]()
    model = narrator(tuned, path).train()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):  # LoRA's first factor has a gradient from the second step on
        optimizer.zero_grad()
        model(make_batch([1, 9, 4], [3, 2, 5], [6, 3, 1]))[0].backward()
        optimizer.step()
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert {"adapter.projection.weight", "adapter.projection.bias"} <= moved
    of_lm = {key for key in moved if key.startswith("lm.")}
    if tuning == "lora":
        assert of_lm
        assert all("lora_" in key for key in of_lm)
    else:
        assert bool(of_lm) == (tuning == "full")


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_used_is_refused_before_training_with_the_reason(name, tmp_path, monkeypatch):
    monkeypatch.setattr("regen.generation.lm_check.user_cache", lambda: tmp_path)
    for _ in range(2):  # found, then remembered
        with pytest.raises(UnfitLanguageModelError, match=f"lm=mine .*cannot be trained: {UNFIT[name]}"):
            checked_fast_path(family(name), name="mine")


def test_the_check_runs_once_and_is_remembered_until_the_lm_changes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("regen.generation.lm_check.user_cache", lambda: tmp_path)
    lm = family("GPTJ")
    with caplog.at_level("INFO"):
        first = checked_fast_path(lm, name="mine")
    assert "lm=mine: transformers' own attention is used (0 of 2 layers attend by it)" in caplog.text
    [file] = tmp_path.glob("lm/checks/*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "reason": "remembered"}))
    assert checked_fast_path(lm, name="mine").reason == "remembered"
    lm.config.rotary_dim = 2
    assert checked_fast_path(lm, name="mine").reason == first.reason


def test_a_module_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(
        ValueError, match=r"tuning.target_modules=\['q_proj'\]: .* linear layers \(c_attn, c_proj, c_fc, lm_head\)"
    ):
        add_lora(family("GPT2"), **LORA, target_modules=["q_proj"])


def test_lora_takes_peft_choice_and_all_linear_layers_where_it_has_none():
    def adapted(name):
        lora = add_lora(family(name), **LORA)
        return {key.split(".lora_")[0].rpartition(".")[2] for key in lora.state_dict() if ".lora_" in key}

    assert adapted("Llama") == {"q_proj", "v_proj"}  # as SmolLM2
    assert adapted("GPTNeoX") == {"query_key_value"}
    assert adapted("Phi3") == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


@pytest.mark.slow  # five small runs, exported and loaded again
@pytest.mark.parametrize("name", FEW)
def test_a_family_is_trained_exported_and_loaded(name, small_config, tmp_path):
    from serving.finished_runs import FinishedRun

    from regen import NarrativeModel
    from regen.embeddings.content import minilm_folder
    from regen.pipeline import train_and_evaluate

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    lm = family(name, vocab_size=len(tokenizer), **ids)
    folder = tmp_path / "lm"
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = ["lm=hf", f"lm.pretrained={folder}", "tuning=lora", "encoder=both", "trainer.max_steps=4"]
    run, _ = train_and_evaluate(small_config(*options, without=("lm", "tuning")))
    finished = FinishedRun(run)
    NarrativeModel.from_run(run).save_pretrained(tmp_path / "export")
    model = NarrativeModel.from_pretrained(tmp_path / "export")
    histories, predictions = finished.of("purchase_reason")
    assert [one.text for one in model.narrate(histories[:4], "purchase_reason")] == predictions[:4]
