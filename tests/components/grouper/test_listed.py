"""Hierarchy groups written out by hand."""

from __future__ import annotations

import pytest
import torch
from helpers import context, count

from dehvf_kit.api.config import ConfigMismatchError
from dehvf_kit.components.grouper.listed import ListedGrouperConfig


def test_the_penultimate_layer_alone_reads_no_other():
    config = ListedGrouperConfig(groups=[[-2]])
    assert config.vision_layers(24) == (22,)
    members, levels = config.build(context(layers=(6,)))(torch.arange(2.0).reshape(2, 1, 1))
    assert members.shape == (2, 1, 1, 1) and levels.index.tolist() == [[0]]
    assert levels.group_of_layer.tolist() == [0, 0, 0, 0]


def test_positions_are_those_of_the_layers_that_are_read():
    """Only vision layers 1, 5 and 6 are computed; members point into that short axis."""
    config = ListedGrouperConfig(groups=[[1, -2], [5, 6, 6]])
    assert config.vision_layers(8) == (1, 5, 6)
    global_tokens = torch.tensor([[10.0, 50.0, 60.0]]).unsqueeze(-1)
    members, levels = config.build(context(layers=(1, 5, 6)))(global_tokens)
    assert members[0, :, :, 0].tolist() == [[10, 60, 10], [50, 60, 60]]
    assert levels.mask.tolist() == [[True, True, False], [True, True, True]] and not levels.full
    assert config.resolve(context()) == {"group": 2, "member": 3}
    assert config.num_params(context()) == {} and count(config.build(context())) == 0


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0], []], "group 1 is empty; name at least one vision layer"),
        ([[0, 8]], "group 0 names vision layer 8 of 8; use -8 to 7"),
        ([[-9]], "group 0 names vision layer -9 of 8; use -8 to 7"),
        ([[0]] * 5, "5 groups for 4 decoder layers"),
    ],
)
def test_refused_when_wired(groups, message):
    with pytest.raises(ConfigMismatchError, match=message) as caught:
        ListedGrouperConfig(groups=groups).resolve(context())
    assert caught.value.field == "groups"
