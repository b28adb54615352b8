"""The loss counts the narrative and its end token only; padding changes nothing; frozen means untouched."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import GenerationConfig

from regen.data.batch import Batch, Layout
from regen.models.adapter import LinearAdapter
from regen.models.head_loss import head_loss, lm_head
from regen.models.language_model import add_lora, freeze
from regen.models.soft_token_lm import SoftTokenLM

K = 6


def make_batch(histories, prompts, targets, generator=None) -> Batch:
    """A batch of the given lengths, histories and prompts padded on the left, targets on the right."""
    generator = generator or torch.Generator().manual_seed(0)
    rows, S, P, T = len(histories), max(histories), max(prompts), max(targets)
    fused, prompt = torch.zeros(rows, S, K), torch.zeros(rows, P, dtype=torch.long)
    target = torch.zeros(rows, T, dtype=torch.long)
    masks = [torch.zeros(rows, width, dtype=torch.bool) for width in (S, P, T)]
    for row, (s, p, t) in enumerate(zip(histories, prompts, targets, strict=True)):
        fused[row, S - s :] = torch.randn(s, K, generator=generator)
        prompt[row, P - p :] = torch.randint(1000, 2000, (p,), generator=generator)
        target[row, :t] = torch.randint(1000, 2000, (t,), generator=generator)
        masks[0][row, S - s :], masks[1][row, P - p :], masks[2][row, :t] = True, True, True
    return Batch(torch.arange(rows), fused, masks[0], prompt, masks[1], target, masks[2])


def one_row(batch: Batch, row: int) -> Batch:
    """The row alone, without any padding."""
    cut = {"examples": batch.examples[[row]]}
    for name, mask in (("fused", "history_mask"), ("prompt", "prompt_mask"), ("target", "target_mask")):
        kept = getattr(batch, mask)[row]
        cut[name], cut[mask] = getattr(batch, name)[row][kept][None], kept[kept][None]
    return Batch(**cut)


class ScriptedLM(nn.Module):
    """Says what it is told: its logits do not depend on the input, and it keeps what it was asked for."""

    config = SimpleNamespace()

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(logits.shape[-1], 4)
        self.head = nn.Identity()
        self.logits = logits
        self.asked: list[tuple[int, ...]] = []
        self.head.register_forward_hook(lambda _, inputs, __: self.asked.append(inputs[0].shape))

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def get_decoder(self):
        return ScriptedDecoder(self.logits)


class ScriptedDecoder:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits
        self.config = SimpleNamespace(_attn_implementation="sdpa")

    def __call__(self, *, inputs_embeds, use_cache):
        return SimpleNamespace(last_hidden_state=self.logits[:, : inputs_embeds.shape[1]] + 0 * inputs_embeds.sum())


def test_loss_mask_by_hand():
    # Two rows; narratives [2, 1] + end 0, and [3] + end 0, one column of padding. Five words.
    target = torch.tensor([[2, 1, 0], [3, 0, 4]])
    target_mask = torch.tensor([[True, True, True], [True, True, False]])
    logits = torch.zeros(2, 9, 5)
    logits[:, :6] = 1e4 * torch.randn(2, 6, 5)  # what stands at bos, history and prompt must not matter
    logits[1, 8] = torch.tensor([0.0, 0.0, 0.0, 0.0, -1e4])  # nor what is predicted for padding
    logits[0, 6] = torch.tensor([0.0, 0.0, math.log(4), 0.0, 0.0])  # P(2) = 4 / 8
    lm = ScriptedLM(logits)
    model = SoftTokenLM(lm, LinearAdapter(K, 4), bos_token_id=1)
    ones = torch.ones(2, 2, dtype=torch.bool)
    batch = Batch(
        torch.arange(2),
        torch.randn(2, 2, K),
        ones,
        torch.ones(2, 4, dtype=torch.long),
        ones.repeat(1, 2),
        target,
        target_mask,
    )
    loss, tokens = model(batch)
    assert int(tokens) == 5
    assert float(loss.detach()) == pytest.approx(math.log(2) + 4 * math.log(5), rel=1e-5)
    assert lm.asked == [(5, 5)]  # the head runs on target positions only


@pytest.fixture
def model(tiny_lm):
    torch.manual_seed(1)
    lm = add_lora(
        tiny_lm.working_copy(trainable=False).model, rank=2, alpha=4.0, dropout=0.0, target_modules=["q_proj", "v_proj"]
    )
    return SoftTokenLM(lm, LinearAdapter(K, tiny_lm.width), bos_token_id=tiny_lm.tokenizer.bos_token_id).eval()


def test_order_is_bos_history_prompt(model, tiny_lm):
    batch = make_batch([2], [3], [4])
    prefix, mask = model.prefix(batch)
    embed = tiny_lm.model.get_input_embeddings()
    torch.testing.assert_close(prefix[0, 0], embed(torch.tensor(tiny_lm.tokenizer.bos_token_id)))
    torch.testing.assert_close(prefix[0, 1:3], model.adapter(batch.fused, batch.history_mask)[0])
    torch.testing.assert_close(prefix[0, 3:], embed(batch.prompt[0]))
    assert mask.all()


def test_padding_changes_no_loss(model):
    batch = make_batch([1, 4, 2], [3, 2, 5], [6, 3, 1])
    together, tokens = model(batch)
    alone = [model(one_row(batch, row)) for row in range(3)]
    assert int(tokens) == sum(int(count) for _, count in alone) == 10
    torch.testing.assert_close(together, sum(loss for loss, _ in alone), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_loss_and_gradients_are_those_of_all_logits(tiny_lm, tuning):
    # The plain way, as transformers has it: padding where it falls, a mask, all logits, labels of -100.
    own = tiny_lm.working_copy(trainable=tuning == "full").model
    options = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    lm = add_lora(own, **options) if tuning == "lora" else own.requires_grad_(True)
    model = SoftTokenLM(lm, LinearAdapter(K, tiny_lm.width), bos_token_id=tiny_lm.tokenizer.bos_token_id)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    batch = make_batch([1, 4, 2], [3, 2, 5], [6, 3, 1])
    prefix, mask = model.prefix(batch)
    mask = torch.cat([mask, batch.target_mask], dim=1).long()
    labels = torch.cat([torch.full(prefix.shape[:2], -100), batch.target.masked_fill(~batch.target_mask, -100)], dim=1)
    embeds = torch.cat([prefix, lm.get_input_embeddings()(batch.target)], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    plain = lm(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, labels=labels).loss
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(plain, list(trained.values()))
    loss, tokens = model(batch)
    torch.testing.assert_close(loss / tokens, plain)
    grads = torch.autograd.grad(loss / tokens, list(trained.values()))
    for name, ours, theirs in zip(trained, grads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_a_step_reads_nothing_back_from_its_device(model):
    # Fake tensors have no values: whatever would wait for the device (`item`, `nonzero`, a mask's `all`) raises.
    batch = make_batch([1, 4, 2], [3, 2, 5], [6, 3, 1])
    layout = model.layout(batch)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        on_device = {name: mode.from_tensor(value) for name, value in vars(batch).items() if value is not None}
        fake = Batch(
            **on_device, layout=Layout(**{name: mode.from_tensor(value) for name, value in vars(layout).items()})
        )
        loss, tokens = model(fake)
        (loss / tokens).backward()
        with pytest.raises(DataDependentOutputException):
            float(loss.detach())
        model.zero_grad(set_to_none=True)


def test_logits_in_chunks_change_no_loss_and_no_gradient(tiny_lm):
    lm = tiny_lm.working_copy(trainable=True).model.requires_grad_(True)
    hidden = torch.randn(7, tiny_lm.width, requires_grad=True)
    targets = torch.randint(0, 1000, (7,))
    sources = [hidden, lm.get_output_embeddings().weight]
    whole = nn.functional.cross_entropy(lm.get_output_embeddings()(hidden), targets, reduction="sum")
    chunked = head_loss(lm, hidden, targets, rows=3)
    torch.testing.assert_close(chunked, whole)
    grads = zip(torch.autograd.grad(3 * chunked, sources), torch.autograd.grad(3 * whole, sources), strict=True)
    for ours, theirs in grads:
        torch.testing.assert_close(ours, theirs)


def test_a_head_that_scales_and_caps_its_logits():
    output = nn.Linear(4, 9)
    config = SimpleNamespace(final_logit_softcapping=2.0, logits_scaling=4.0)
    lm = SimpleNamespace(config=config, get_output_embeddings=lambda: output)
    hidden = torch.randn(3, 4)
    torch.testing.assert_close(lm_head(lm)(hidden), 2 * torch.tanh(output(hidden) / 4 / 2))


def test_left_padded_generation_equals_one_by_one(tiny_lm):
    lm = tiny_lm.working_copy(trainable=True).model
    nn.init.normal_(lm.get_input_embeddings().weight, std=1.0)  # a random LM that says different things
    model = SoftTokenLM(lm, LinearAdapter(K, tiny_lm.width), bos_token_id=tiny_lm.tokenizer.bos_token_id).eval()
    config = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=2)
    batch = make_batch([1, 7, 3, 2], [3, 2, 5, 1], [1, 1, 1, 1])
    together = model.generate(batch, config)
    for row in range(4):
        alone = model.generate(one_row(batch, row), config)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()
    assert len({tuple(row.tolist()) for row in together}) > 1


def test_gradients_reach_the_adapter_and_lora_alone(model, tiny_lm):
    loss, _ = model(make_batch([2, 3], [2, 2], [4, 5]))
    loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("projection" in name for name in reached)
    assert any("lora_B" in name for name in reached)
    assert all("adapter" in name or "lora" in name for name in reached)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(model.trained_state())


def test_frozen_lm_is_bit_identical_after_training(tiny_lm):
    before = {name: tensor.clone() for name, tensor in tiny_lm.model.state_dict().items()}
    lm = freeze(tiny_lm.working_copy(trainable=False).model)
    model = SoftTokenLM(lm, LinearAdapter(K, tiny_lm.width))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    first = None
    for _ in range(5):
        loss, _ = model(make_batch([2, 3], [2, 2], [4, 5]))
        first = first if first is not None else float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first  # the adapter did learn
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.state_dict().items())


def test_full_tuning_leaves_the_shared_lm_alone(tiny_lm):
    copy = tiny_lm.working_copy(trainable=True).model
    with torch.no_grad():
        next(copy.parameters()).add_(1)
    assert not torch.equal(next(copy.parameters()), next(tiny_lm.model.parameters()))


def test_learned_positions_count_back_from_the_latest(tiny_lm):
    model = SoftTokenLM(
        freeze(tiny_lm.working_copy(trainable=False).model), LinearAdapter(K, tiny_lm.width), learned_positions=5
    )
    entering = model.inputs(torch.zeros(2, 3, K))
    torch.testing.assert_close(entering[0], model.positions[2:])
    assert "positions" in model.trained_state()


def test_loss_does_not_depend_on_the_user_without_vectors(tiny_lm):
    model = SoftTokenLM(
        freeze(tiny_lm.working_copy(trainable=False).model), LinearAdapter(K, tiny_lm.width), learned_positions=5
    )
    batch = make_batch([3], [2], [4])
    other = replace(batch, fused=torch.randn_like(batch.fused))
    torch.testing.assert_close(model(batch)[0], model(other)[0])


def test_trained_state_round_trip_and_refusals(model, tiny_lm):
    state = {name: tensor + 1 for name, tensor in model.trained_state().items()}
    model.load_trained_state(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.trained_state().items())
    with pytest.raises(ValueError, match="1 tensors are in one of them only, the first is 'adapter.projection.bias'"):
        model.load_trained_state({name: t for name, t in state.items() if name != "adapter.projection.bias"})
    wider = {**state, "adapter.projection.weight": torch.zeros(tiny_lm.width, K + 1)}
    with pytest.raises(ValueError, match=r"'adapter.projection.weight' is \(32, 7\) there and \(32, 6\) here"):
        model.load_trained_state(wider)


def test_embedding_norm_is_what_the_module_returns(tiny_lm):
    lm = tiny_lm.working_copy(trainable=True)
    plain = lm.embedding_norm()
    embedding = lm.model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, out: out * 8)  # as Gemma scales inside the module
    assert lm.embedding_norm() == pytest.approx(8 * plain, rel=1e-5)
