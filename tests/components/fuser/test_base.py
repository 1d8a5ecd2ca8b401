"""The weighted sum of vision layers that all fusers share, and the identity that lets it run on narrow codes."""

from __future__ import annotations

import torch
from helpers import worst

from dehvf_kit.components.fuser.base import Fuser
from dehvf_kit.components.grouper.base import Grouper
from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjector

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
