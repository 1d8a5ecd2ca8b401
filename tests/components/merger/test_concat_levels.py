"""Several encoders as one: groups joined member by member, on one grid and one width."""

from __future__ import annotations

import pytest
import torch
from helpers import context, count, randomise, worst
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dehvf_kit.api.config import ConfigMismatchError
from dehvf_kit.components.base import Grouper
from dehvf_kit.components.merger.concat_levels import ConcatLevelsMerger, ConcatLevelsMergerConfig
from dehvf_kit.errors import ShapeError

FIRST, SECOND = [[0, 1, 2], [3, 4, 3]], [[0], [1, 0]]


def wired(**changes):
    """Two encoders: 5 layers of 16 patches 24 wide in groups of 3, and 2 layers of 4 patches 10 wide in groups of 2."""
    patches = ({"layer": 5, "patch": 16, "vision_hidden": 24}, {"layer": 2, "patch": 4, "vision_hidden": 10})
    groups = ({"group": 2, "member": 3}, {"group": 2, "member": 2})
    names = (("clip",), ("dino",))
    wires = {"patches": patches, "members": groups, "levels": groups, **changes.pop("wires", {})}
    encoders = {port: names for port in wires} | changes.pop("encoders", {})
    return context(wires=wires, encoders=encoders, vision=None, **changes)


def inputs():
    torch.manual_seed(0)
    towers = torch.randn(2, 5, 1 + 16, 24), torch.randn(2, 2, 1 + 4, 10)
    grouped = [Grouper(groups, 4)(tower[:, :, 0]) for groups, tower in zip((FIRST, SECOND), towers, strict=True)]
    return [tower[:, :, 1:] for tower in towers], [members for members, _ in grouped], [levels for _, levels in grouped]


def test_equals_the_formula():
    """Worst error measured: 0."""
    module = ConcatLevelsMergerConfig(hidden_size=6).build(wired())
    randomise(module)
    patches, members, levels = inputs()
    merged, tokens, joined = module(patches, members, levels)

    assert merged.shape == (2, 7, 16, 6) and tokens.shape == (2, 2, 5, 6)
    first, second = (
        [tensor @ m.weight.T + m.bias for tensor in (p, t)] for m, p, t in zip(module.maps, patches, members, strict=True)
    )
    assert worst(merged[:, :5], first[0]) < 2e-6
    for image in range(2):
        for layer in range(2):
            grid = second[0][image, layer].T.reshape(1, 6, 2, 2)
            large = F.interpolate(grid, size=(4, 4), mode="bilinear", align_corners=False).reshape(6, 16).T
            assert worst(merged[image, 5 + layer], large) < 2e-6
    assert worst(tokens, torch.cat([first[1], second[1]], dim=2)) < 2e-6
    assert joined.index.tolist() == [[0, 1, 2, 5, 5], [3, 4, 3, 6, 5]], "the second encoder's layers follow the first's"
    assert joined.mask.tolist() == [[True] * 3 + [True, False], [True] * 5]
    assert not joined.full and joined.group_of_layer.tolist() == [0, 0, 1, 1]


def test_sizes_and_num_params():
    config = ConcatLevelsMergerConfig(hidden_size=6)
    assert config.resolve(wired()) == {"layer": 7, "patch": 16, "group": 2, "member": 5, "vision_hidden": 6}
    assert sum(config.num_params(wired()).values()) == count(config.build(wired())) == 25 * 6 + 11 * 6


def test_cost_equals_counted_flops():
    config = ConcatLevelsMergerConfig(hidden_size=6)
    patches, members, levels = inputs()
    module = config.build(wired())
    with FlopCounterMode(display=False) as counter:
        module([tensor[:1] for tensor in patches], [tensor[:1] for tensor in members], levels)
    assert counter.get_total_flops() == config.cost(wired()).per_image


SQUARE = {"layer": 5, "patch": 16, "vision_hidden": 24}
REFUSED = {
    "one wire less": (
        {"wires": {"members": ({"group": 2, "member": 3},)}},
        r"ports have different numbers of wires: {'patches': 2, 'members': 1, 'levels': 2}",
    ),
    "other group counts": (
        {"wires": dict.fromkeys(("members", "levels"), ({"group": 2, "member": 3}, {"group": 3, "member": 2}))},
        r"cut into different numbers of groups: \[2, 3\]; give all the same",
    ),
    "no square": (
        {"wires": {"patches": (SQUARE, {**SQUARE, "patch": 15})}},
        "needs square patch grids of known size; one encoder yields 15 patches",
    ),
    "unknown grid": (
        {"wires": {"patches": (SQUARE, {**SQUARE, "patch": None})}},
        "needs square patch grids of known size; one encoder yields None patches",
    ),
    "other order": (
        {"encoders": {"members": (("dino",), ("clip",))}},
        "ports name the encoders in different orders: patches from clip, dino; members from dino, clip; .*; list them in one",
    ),
    "members and levels of two groupers": (
        {"wires": {"levels": ({"group": 2, "member": 3}, {"group": 2, "member": 9})}},
        r"members come in groups and members \(2, 2\) but levels in \(2, 9\); wire both to one grouper",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_wired(case):
    changes, message = REFUSED[case]
    with pytest.raises(ConfigMismatchError, match=message) as caught:
        ConcatLevelsMergerConfig().resolve(wired(**changes))
    assert caught.value.field == "inputs"


def test_a_grid_that_is_not_square_is_refused_when_it_runs():
    module = ConcatLevelsMerger([24], 6, 16)
    with pytest.raises(ShapeError, match="merger: 12 patches are no square grid; give square images"):
        module([torch.randn(1, 2, 12, 24)], [torch.randn(1, 1, 1, 24)], [Grouper([[0]], 4)(torch.randn(1, 2, 24))[1]])
