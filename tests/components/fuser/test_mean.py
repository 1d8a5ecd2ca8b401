"""The plain mean of each group's vision layers."""

from __future__ import annotations

import pytest
import torch
from helpers import context, count, worst
from torch.utils.flop_counter import FlopCounterMode

from dehvf_kit.components.base import Grouper
from dehvf_kit.components.fuser.mean import MeanFuser, MeanFuserConfig


@pytest.mark.parametrize("groups", [[[0, 1, 6], [4, 6, 6]], [[0, 1, 6], [5], [2, 7]], [[-2 % 8]]])
def test_equals_the_mean_of_each_group(groups):
    """Worst error measured: 2.4e-7. A layer that a group holds twice counts twice."""
    torch.manual_seed(0)
    codes = torch.randn(2, 8, 16, 6)
    _, levels = Grouper(groups, 5)(torch.randn(2, 8, 24))
    fused, weights = MeanFuser()(levels, codes)

    assert fused.shape == (2, 5, 1, 16, 6) and weights.shape == (2, 5, 1, max(map(len, groups)))
    for layer, group in enumerate(levels.group_of_layer.tolist()):
        assert worst(fused[:, layer, 0], torch.stack([codes[:, member] for member in groups[group]]).mean(0)) < 1e-6
        assert worst(weights[:, layer].sum(-1), torch.ones(2, 1)) < 1e-6


def test_no_parameters_and_one_role_for_both():
    config = MeanFuserConfig()
    assert config.num_params(context()) == {} and count(config.build(context())) == 0
    assert config.resolve(context()) == {"kv": 1}


def test_cost_equals_counted_flops():
    codes = torch.randn(1, 8, 16, 8)
    _, levels = Grouper([[0, 1, 2, 3, 6], [4, 5, 6, 7, 6]], 4)(torch.randn(1, 8, 24))
    with FlopCounterMode(display=False) as counter:
        MeanFuser()(levels, codes)
    assert counter.get_total_flops() == MeanFuserConfig().cost(context()).per_image
