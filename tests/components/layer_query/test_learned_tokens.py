"""Free learned queries."""

from __future__ import annotations

import pytest
import torch
from helpers import context, count

from dehvf_kit.api.shapes import DecoderSpec
from dehvf_kit.components.layer_query.learned_tokens import LearnedTokensQueryConfig


@pytest.mark.parametrize("separate", [True, False])
def test_tokens_are_the_queries(separate):
    config = LearnedTokensQueryConfig(query_size=6, separate_kv=separate)
    module = config.build(context())
    kv = 2 if separate else 1
    assert module().shape == (4, kv, 6) and torch.equal(module(), module.tokens)
    assert config.resolve(context()) == {"kv": kv, "query": 6}
    assert sum(config.num_params(context()).values()) == count(module) == 4 * kv * 6


def test_initial_spread():
    torch.manual_seed(0)
    module = LearnedTokensQueryConfig(std=0.5).build(context(decoder=DecoderSpec(32, 100)))
    assert abs(module.tokens.std().item() - 0.5) < 0.02, "measured 0.4995 over 12,800 draws"
