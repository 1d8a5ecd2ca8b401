"""What components share: casts to the product's dtype, runs of layers, the weighted sum of a group's layers."""

from __future__ import annotations

import pytest
import torch
from helpers import context, worst
from hypothesis import given
from hypothesis import strategies as st

from dehvf_kit.components.base import Fuser, Grouper, product_dtype, runs
from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjector, BottleneckMlpProjectorConfig

WEIGHT = torch.zeros(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_autocast_it_is_the_weights_own(dtype):
    assert product_dtype(WEIGHT.to(dtype)) == dtype


def test_under_autocast_it_is_autocasts():
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(WEIGHT) == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert product_dtype(WEIGHT) == torch.float32


def test_there_is_none_on_the_meta_device():
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(WEIGHT.to("meta")) == torch.float32


def test_patches_of_half_precision_are_not_made_float32_first():
    """Worst error seen against float32: 0.011, of numbers up to 3.5; bfloat16 keeps 8 bits."""
    torch.manual_seed(0)
    projector = BottleneckMlpProjectorConfig(bottleneck_size=5).build(context())
    patches = torch.randn(2, 8, 16, 24)
    exact, _ = projector(patches)
    with torch.autocast("cpu", torch.bfloat16):
        codes, _ = projector(patches.bfloat16())
    assert codes.dtype == torch.bfloat16
    assert (codes.float() - exact).abs().max() < 0.03


@given(st.integers(1, 60).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count))))
def test_runs_cover_all_layers_in_order_and_differ_by_one_at_most(sizes):
    count, groups = sizes
    cut = runs(count, groups)
    lengths = [len(run) for run in cut]
    assert [layer for run in cut for layer in run] == list(range(count))
    assert len(cut) == groups and min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


GROUPS = [[0, 1, 6], [4, 6, 6], [7]]


def weights_of(batch: int, levels) -> torch.Tensor:
    scores = torch.randn(batch, 5, 2, 3).masked_fill(~levels.mask[levels.group_of_layer][None, :, None], -torch.inf)
    return scores.softmax(-1)


def test_mix_equals_a_loop():
    """Worst error measured: 2.4e-7. One weight row for the whole batch serves every image."""
    torch.manual_seed(0)
    _, levels = Grouper(GROUPS, 5)(torch.randn(2, 8, 4))
    codes = torch.randn(2, 8, 9, 6)
    for batch in (2, 1):
        weights = weights_of(batch, levels)
        mixed = Fuser.mix(weights.expand(2, -1, -1, -1), codes, levels)
        for image in range(2):
            for layer, group in enumerate([0, 0, 1, 1, 2]):
                for role in range(2):
                    expected = torch.zeros(9, 6)
                    for place, member in enumerate(GROUPS[group]):
                        expected += weights[min(image, batch - 1), layer, role, place] * codes[image, member]
                    assert worst(mixed[image, layer, role], expected) < 1e-6


def test_half_precision_patches_beside_their_global_tokens_mix_alike():
    """Rows with gaps are the same numbers as rows without: no difference, gradients included."""
    torch.manual_seed(2)
    _, levels = Grouper(GROUPS, 5)(torch.randn(2, 8, 4))
    features = torch.randn(2, 8, 10, 6, dtype=torch.bfloat16)
    found = []
    for patches in (features[:, :, 1:], features[:, :, 1:].clone(memory_format=torch.contiguous_format)):
        torch.manual_seed(3)
        weights = weights_of(2, levels).requires_grad_()
        mixed = Fuser.mix(weights, patches, levels)
        mixed.sum().backward()
        found.append((mixed, weights.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_fc1_of_the_sum_is_the_sum_of_fc1():
    """Method, section 3: weights sum to one, so mixing narrow codes equals projecting mixed features.

    Worst error measured: 4.8e-7.
    """
    torch.manual_seed(1)
    _, levels = Grouper(GROUPS, 5)(torch.randn(2, 8, 24))
    patches, weights = torch.randn(2, 8, 9, 24), weights_of(2, levels)
    projector = BottleneckMlpProjector(24, 6, 32)
    torch.nn.init.normal_(projector.fc1.bias)
    codes, readout = projector(patches)
    fast = Fuser.mix(weights, codes, levels)
    slow = projector.fc1(Fuser.mix(weights, patches, levels))

    assert worst(fast, slow) < 2e-6
    whole = torch.nn.functional.linear(readout.activation(fast), readout.weight, readout.bias)
    assert worst(whole, projector.project(Fuser.mix(weights, patches, levels))) < 2e-6
