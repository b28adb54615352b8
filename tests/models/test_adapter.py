"""Adapters start as the map they are given, and scale what they return."""

import functools

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from regen.models.adapter import LinearAdapter, MLPAdapter, TransformerAdapter
from regen.models.warm_start import initialise, ridge_map

ADAPTERS = {
    "linear": lambda: LinearAdapter(12, 20),
    "mlp": lambda: MLPAdapter(12, 20, hidden_dim=30),
    "plain_mlp": lambda: MLPAdapter(12, 20, hidden_dim=30, residual=False),
    "transformer": lambda: TransformerAdapter(12, 20, hidden_dim=16, layers=1, heads=2, max_history=7),
}


@pytest.fixture(params=ADAPTERS)
def adapter(request):
    torch.manual_seed(0)
    return ADAPTERS[request.param]()


def test_starts_as_the_given_map(adapter):
    weight, bias = torch.randn(20, 12), torch.randn(20)
    fused, mask = torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool)
    adapter.start_as(weight, bias)
    torch.testing.assert_close(adapter(fused, mask), fused @ weight.T + bias, atol=1e-4, rtol=1e-4)


def test_a_started_adapter_can_still_learn_everywhere(adapter):
    adapter.start_as(torch.randn(20, 12), torch.zeros(20))
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.001)  # without decay: what has no gradient stays
    before = {name: parameter.clone() for name, parameter in adapter.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        adapter(torch.randn(4, 5, 12), torch.ones(4, 5, dtype=torch.bool)).pow(2).mean().backward()
        optimizer.step()
    unmoved = [name for name, parameter in adapter.named_parameters() if torch.equal(parameter, before[name])]
    assert unmoved == []


def test_few_hidden_units_keep_the_largest_directions():
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    adapter = MLPAdapter(3, 3, hidden_dim=4, residual=False)
    adapter.start_as(weight, torch.zeros(3))
    out = adapter(torch.ones(1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(out[0, 0], torch.tensor([3.0, 2.0, 0.0]), atol=1e-5, rtol=0)


def test_scale_output(adapter):
    fused, mask = torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool)
    before = adapter(fused, mask)
    adapter.scale_output(2.5)
    torch.testing.assert_close(adapter(fused, mask), 2.5 * before)


def test_transformer_ignores_padding():
    torch.manual_seed(0)
    adapter = ADAPTERS["transformer"]()
    fused = torch.randn(1, 3, 12)
    padded = torch.cat([torch.full((1, 2, 12), 9.0), fused], dim=1)
    alone = adapter(fused, torch.ones(1, 3, dtype=torch.bool))
    beside = adapter(padded, torch.tensor([[False, False, True, True, True]]))
    torch.testing.assert_close(beside[:, 2:], alone)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"adapter.hidden_dim=10 is not a multiple of adapter.heads=4"):
        TransformerAdapter(4, 4, hidden_dim=10, layers=1, heads=4)


def test_ridge_map_is_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator) + 3
    targets = inputs @ torch.randn(6, 4, generator=generator) + torch.randn(50, 4, generator=generator)
    weight, mean = ridge_map(inputs, targets, strength=0.3)
    penalty = 0.3 * float(inputs.var(dim=0, unbiased=False).mean()) * len(inputs)
    reference = Ridge(alpha=penalty).fit(inputs.numpy(), targets.numpy())
    torch.testing.assert_close(weight, torch.tensor(reference.coef_, dtype=torch.float32), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mean, inputs.mean(dim=0))


@pytest.mark.parametrize("ridge", [None, 0.1], ids=["random", "ridge"])
def test_soft_tokens_start_at_the_given_norm(adapter, ridge):
    inputs, targets, interactions = torch.randn(40, 12), torch.randn(40, 20), torch.randn(90, 12)
    initialise(adapter, ridge=ridge, inputs=inputs, targets=targets, interactions=interactions, norm=3.2)
    soft = adapter(interactions[:, None], torch.ones(90, 1, dtype=torch.bool))
    assert float(soft.detach().norm(dim=-1).mean()) == pytest.approx(3.2, rel=1e-3)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_step_at_the_default_rate_leaves_most_of_the_warm_start(small_config, name):
    """At the width of CF, MiniLM and SmolLM2; an encoder let in at once moved the transformer's by twice their norm."""
    torch.manual_seed(0)
    options = small_config(f"adapter={name}", without="adapter").adapter
    adapter = options.build(512, 576)
    unit = functools.partial(nn.functional.normalize, dim=-1)
    fused = torch.cat([unit(torch.randn(8, 10, 128)), unit(torch.randn(8, 10, 384))], dim=-1)
    rows, targets, mask = fused.flatten(0, 1), 0.1 * torch.randn(80, 576), torch.ones(8, 10, dtype=torch.bool)
    initialise(adapter, ridge=0.1, inputs=rows, targets=targets, interactions=rows, norm=3.0)
    before = adapter(fused, mask).detach()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=options.lr)
    (adapter(fused, mask) * torch.randn(8, 10, 576)).sum().backward()
    optimizer.step()
    moved = (adapter(fused, mask) - before).norm(dim=-1) / before.norm(dim=-1)
    assert 0 < float(moved.mean().detach()) < 1 / 3
