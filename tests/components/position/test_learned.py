"""p_K ~ N(0, 0.02) and p_V = 0."""

from __future__ import annotations

import torch
from helpers import context, count

from dehvf_kit.api.shapes import DecoderSpec
from dehvf_kit.components.position.learned import LearnedPositionConfig


def test_tables_and_their_initial_values():
    torch.manual_seed(0)
    module = LearnedPositionConfig(num_slots=50).build(context(decoder=DecoderSpec(512, 4)))
    keys, values = module()
    assert keys.shape == values.shape == (50, 512)
    assert not values.any()
    assert abs(keys.std().item() - 0.02) < 5e-4 and abs(keys.mean().item()) < 5e-4, "measured 0.01995 and 1e-4"
    assert keys is module.keys and values is module.values


def test_num_params_equals_built_and_published():
    config = LearnedPositionConfig()
    assert sum(config.num_params(context()).values()) == count(config.build(context()))
    assert sum(config.num_params(context(decoder=DecoderSpec(4096, 32))).values()) == 2_621_440
    assert config.resolve(context()) == {"slot": 320}
