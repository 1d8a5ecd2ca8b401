"""Runs of neighbouring vision layers with the penultimate layer joined to each."""

from __future__ import annotations

import pytest
import torch
from helpers import context, count, reference_groups, worst

from dehvf_kit.api.config import ConfigMismatchError
from dehvf_kit.api.shapes import DecoderSpec, VisionSpec
from dehvf_kit.components.grouper.contiguous import ContiguousGrouperConfig


def wired(vision_layers: int, decoder_layers: int):
    return context(
        axes={"layer": vision_layers},
        vision=VisionSpec(24, vision_layers, 16),
        decoder=DecoderSpec(32, decoder_layers),
        layers=tuple(range(vision_layers)),
    )


def test_the_papers_groups():
    """24 vision layers, 32 decoder layers, 4 groups: seven members a group, eight decoder layers read each."""
    config = ContiguousGrouperConfig()
    assert config.members_of(24) == [
        [0, 1, 2, 3, 4, 5, 22],
        [6, 7, 8, 9, 10, 11, 22],
        [12, 13, 14, 15, 16, 17, 22],
        [18, 19, 20, 21, 22, 23, 22],
    ]
    assert config.resolve(wired(24, 32)) == {"group": 4, "member": 7}
    levels = config.build(wired(24, 32)).levels()
    assert levels.full and levels.largest == 8
    assert levels.group_of_layer.tolist() == [group for group in range(4) for _ in range(8)]


@pytest.mark.parametrize(("vision", "decoder", "groups"), [(8, 4, 2), (7, 5, 3), (7, 5, 2), (5, 5, 5), (2, 1, 1), (12, 30, 5)])
def test_members_equal_the_formula(vision, decoder, groups):
    config = ContiguousGrouperConfig(num_groups=groups)
    torch.manual_seed(0)
    global_tokens = torch.randn(3, vision, 24)
    members, levels = config.build(wired(vision, decoder))(global_tokens)
    expected = reference_groups(vision, groups)
    readers = [group for group, run in enumerate(reference_groups(decoder, groups)) for _ in run[:-1]]

    assert config.resolve(wired(vision, decoder)) == {"group": groups, "member": max(map(len, expected))}
    assert members.shape == (3, groups, max(map(len, expected)), 24)
    assert levels.group_of_layer.tolist() == readers
    assert levels.full == (vision % groups == 0)
    assert levels.mask.sum(-1).tolist() == [len(group) for group in expected]
    for group, own in enumerate(expected):
        assert levels.index[group, : len(own)].tolist() == own
        assert worst(members[:, group, : len(own)], global_tokens[:, own]) == 0
    places = levels.place.tolist()
    assert len(set(places)) == decoder and all(place // levels.largest == readers[i] for i, place in enumerate(places))


def test_without_the_penultimate_layer():
    assert ContiguousGrouperConfig(num_groups=2, add_penultimate=False).members_of(5) == [[0, 1, 2], [3, 4]]


def test_no_parameters():
    config = ContiguousGrouperConfig(num_groups=2)
    assert config.num_params(context()) == {} and count(config.build(context())) == 0
    assert config.build(context()).state_dict() == {}, "the recipe implies the table; it is not saved"


@pytest.mark.parametrize(
    ("settings", "vision", "decoder", "field", "message"),
    [
        ({"num_groups": 9}, 8, 32, "num_groups", "9 groups for 8 vision layers; use at most 8"),
        ({"num_groups": 5}, 8, 4, "num_groups", "5 groups for 4 decoder layers; use at most 4"),
        ({"num_groups": 1}, 1, 4, "add_penultimate", "one layer has no penultimate layer; set add_penultimate: false"),
    ],
)
def test_refused_when_wired(settings, vision, decoder, field, message):
    with pytest.raises(ConfigMismatchError, match=message) as caught:
        ContiguousGrouperConfig(**settings).resolve(wired(vision, decoder))
    assert caught.value.field == field
