"""What is read from an adapter is what it computes, on runs trained here and on weights made by hand."""

import math

import numpy as np
import pytest
import torch

from regen.analysis.adapter_weights import (
    Projection,
    attribution_share,
    cf_shares,
    chance_angles,
    norm_share,
    principal_angles,
    singular_values,
    split_projection,
)
from regen.models.adapter import LinearAdapter, MLPAdapter, TransformerAdapter

CF_DIM, IN_DIM, LM_DIM = 3, 8, 10


def attributed(adapter, fused):
    """Attribution share of interactions that are each a history of their own."""
    mask, rows = torch.ones(len(fused), 1, dtype=torch.bool), torch.arange(len(fused))
    return attribution_share(
        adapter, fused[:, None], mask, rows=rows, positions=torch.zeros_like(rows), cf_dim=CF_DIM, batch_size=5
    )


def share_of(sample):
    """The attribution share that every adapter has."""
    return cf_shares(sample)["attribution"]


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return LinearAdapter(IN_DIM, LM_DIM)


def without_content(adapter):
    """The adapter with every weight that reads content set to zero."""
    readers = {LinearAdapter: ["projection"], MLPAdapter: ["hidden", "skip"], TransformerAdapter: ["inward", "skip"]}
    with torch.no_grad():
        for name in readers[type(adapter)]:
            getattr(adapter, name).weight[:, CF_DIM:] = 0
    return adapter


ADAPTERS = {
    "linear": lambda: LinearAdapter(IN_DIM, LM_DIM),
    "mlp": lambda: MLPAdapter(IN_DIM, LM_DIM, hidden_dim=12),
    "transformer": lambda: TransformerAdapter(IN_DIM, LM_DIM, hidden_dim=8, layers=2, heads=2, max_history=6),
}


# The linear projection


def test_blocks_sum_to_the_linear_projection(samples):
    sample = samples["linear"]
    projection = split_projection(sample.adapter, sample.cf_dim)
    parts = projection.parts(sample.fused)
    torch.testing.assert_close(parts.cf + parts.content + projection.bias, sample.soft, atol=1e-5, rtol=1e-4)


def test_centred_parts_sum_to_the_centred_soft_tokens(samples):
    sample = samples["linear"]
    parts = split_projection(sample.adapter, sample.cf_dim).parts(sample.fused, centred=True)
    torch.testing.assert_close(parts.cf + parts.content, sample.soft - sample.soft.mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_only_a_linear_adapter_has_blocks(name):
    with pytest.raises(ValueError, match=r"has no CF and content blocks .* attribution_share"):
        split_projection(ADAPTERS[name](), CF_DIM)


def test_norm_share_by_hand():
    cf, content = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 5.0], [1.0, 0.0], [0.0, 0.0]])
    share = norm_share(cf, content)
    assert share[:2].tolist() == [0.5, 0.0]
    assert share[2].isnan()


def test_a_zero_content_block_gives_share_one_and_a_zero_cf_block_zero(linear):
    fused = torch.randn(6, IN_DIM)
    cf_only = split_projection(without_content(linear), CF_DIM).parts(fused)
    assert (norm_share(cf_only.cf, cf_only.content) == 1).all()
    with torch.no_grad():
        linear.projection.weight[:, :CF_DIM] = 0
        linear.projection.weight[:, CF_DIM:] = 1
    content_only = split_projection(linear, CF_DIM).parts(fused)
    assert (norm_share(content_only.cf, content_only.content) == 0).all()


def test_all_measures_of_a_run(sample):
    shares = cf_shares(sample)
    linear = sample.run.config.adapter.name == "linear"
    assert list(shares) == (["norms", "norms, parts centred"] if linear else []) + ["attribution"]
    if linear:
        parts = split_projection(sample.adapter, sample.cf_dim).parts(sample.fused)
        expected = parts.norms[0] / (parts.norms[0] + parts.norms[1])
        torch.testing.assert_close(shares["norms"], expected)


def test_cosines_by_hand():
    projection = Projection(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2))
    fused = torch.tensor([[2.0, 3.0, 0.0], [2.0, 0.0, 1.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    cosines = projection.parts(fused).cosines
    torch.testing.assert_close(cosines[:3], torch.tensor([1.0, 0.0, -(0.5**0.5)]))
    assert cosines[3].isnan()


def test_singular_values_of_a_rotated_scaling():
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in (6, 3))
    block = left[:, :3] @ torch.diag(torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64)) @ right
    torch.testing.assert_close(singular_values(block), torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64))


def test_principal_angles_by_hand():
    axes = torch.eye(5)
    tilted = torch.stack([axes[0], math.cos(0.5) * axes[1] + math.sin(0.5) * axes[3]], dim=1)
    angles = principal_angles(axes[:, :2] * 7, tilted)
    np.testing.assert_allclose(angles, [0, math.degrees(0.5)], atol=1e-5)
    np.testing.assert_allclose(principal_angles(axes[:, :2], axes[:, 3:]), [90, 90])
    assert len(principal_angles(axes[:, :2], torch.zeros(5, 2))) == 0


def test_random_blocks_as_wide_as_the_lm_share_every_direction():
    wide = Projection(torch.randn(6, 2), torch.randn(6, 6), torch.zeros(6))
    np.testing.assert_allclose(chance_angles(wide), [0, 0], atol=1e-4)
    narrow = Projection(torch.randn(200, 2), torch.randn(200, 2), torch.zeros(200))
    assert chance_angles(narrow).min() > 60
    np.testing.assert_array_equal(chance_angles(narrow, seed=3), chance_angles(narrow, seed=3))


# Attribution


def test_shares_lie_within_zero_and_one_for_every_adapter(sample):
    share = share_of(sample)
    known = share[~share.isnan()]
    assert len(known) > len(share) / 2
    assert ((known >= 0) & (known <= 1)).all()
    assert known.std() > 0


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_reads_no_content_has_share_one(name):
    torch.manual_seed(0)
    share = attributed(without_content(ADAPTERS[name]()), torch.randn(7, IN_DIM))
    torch.testing.assert_close(share, torch.ones(7))


def test_attribution_weighs_the_norms_of_the_linear_parts_by_their_cosines_with_the_soft_token(linear):
    fused = torch.randn(12, IN_DIM)
    projection = split_projection(linear, CF_DIM)
    parts, soft = projection.parts(fused), linear.projection(fused).detach()
    cf, content = (torch.cosine_similarity(part, soft).abs() * part.norm(dim=1) for part in (parts.cf, parts.content))
    torch.testing.assert_close(attributed(linear, fused), cf / (cf + content))
    assert not torch.allclose(attributed(linear, fused), norm_share(parts.cf, parts.content), atol=0.01)


def test_attribution_is_the_norm_share_where_the_parts_are_parallel(linear):
    direction = torch.randn(LM_DIM)
    with torch.no_grad():
        linear.projection.weight.copy_(torch.outer(direction, torch.randn(IN_DIM)))
        linear.projection.bias.zero_()
    fused = torch.randn(12, IN_DIM)
    parts = split_projection(linear, CF_DIM).parts(fused)
    torch.testing.assert_close(attributed(linear, fused), norm_share(parts.cf, parts.content))


def test_attribution_is_the_share_of_squared_norms_where_the_parts_are_orthogonal(linear):
    with torch.no_grad():
        linear.projection.weight[: LM_DIM // 2, :CF_DIM] = 0
        linear.projection.weight[LM_DIM // 2 :, CF_DIM:] = 0
        linear.projection.bias.zero_()
    fused = torch.randn(12, IN_DIM)
    cf, content = split_projection(linear, CF_DIM).parts(fused).norms
    torch.testing.assert_close(attributed(linear, fused), cf**2 / (cf**2 + content**2))


def test_attribution_does_not_depend_on_whether_the_projection_or_the_squared_norm_is_attributed():
    torch.manual_seed(0)
    adapter, fused = ADAPTERS["mlp"](), torch.randn(6, IN_DIM)
    entering = fused.clone().requires_grad_()
    adapter(entering[:, None], torch.ones(6, 1, dtype=torch.bool)).pow(2).sum().backward()
    products = entering.grad * fused
    cf, content = products[:, :CF_DIM].sum(dim=1).abs(), products[:, CF_DIM:].sum(dim=1).abs()
    torch.testing.assert_close(attributed(adapter, fused), cf / (cf + content))


def test_attribution_of_a_transformer_counts_the_whole_history():
    """Against derivatives by finite differences of every input of the history."""
    torch.manual_seed(0)
    adapter = ADAPTERS["transformer"]().double()
    torch.nn.init.normal_(adapter.outward.weight, std=adapter.outward.in_features)
    histories, mask = torch.randn(1, 4, IN_DIM, dtype=torch.float64), torch.tensor([[False, True, True, True]])
    one = torch.zeros(1, dtype=torch.long)
    share = attribution_share(adapter, histories, mask, rows=one, positions=one - 1, cf_dim=CF_DIM)
    with torch.no_grad():
        direction = torch.nn.functional.normalize(adapter(histories, mask)[0, -1], dim=0)

        def along(scaled):
            return float(adapter(scaled, mask)[0, -1] @ direction)

        total = []
        for block in (slice(0, CF_DIM), slice(CF_DIM, IN_DIM)):
            step = torch.zeros_like(histories)
            step[:, 1:, block] = 1e-5 * histories[:, 1:, block]
            total.append(abs(along(histories + step) - along(histories - step)))
    assert float(share) == pytest.approx(total[0] / sum(total), abs=1e-5)
    own = histories.clone()
    own[:, 1:-1] = 0
    assert float(share) != pytest.approx(
        float(attribution_share(adapter, own, mask, rows=one, positions=one - 1, cf_dim=CF_DIM)), abs=1e-3
    )
