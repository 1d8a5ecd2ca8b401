"""z[l, p] = fc2(act(fc1([e_l ; e_p])))."""

from __future__ import annotations

import pytest
from helpers import context, count, randomise, reference_query, worst
from torch.utils.flop_counter import FlopCounterMode

from dehvf_kit.api.shapes import DecoderSpec
from dehvf_kit.components.layer_query.embedding_mlp import EmbeddingMlpQueryConfig


@pytest.mark.parametrize("separate", [True, False])
def test_equals_the_formula(separate):
    """Worst error measured: 3.9e-6."""
    config = EmbeddingMlpQueryConfig(embedding_size=5, query_size=7, separate_kv=separate)
    module = config.build(context())
    randomise(module, std=1.0)
    queries = module()

    assert queries.shape == (4, 2 if separate else 1, 7)
    assert config.resolve(context()) == {"kv": 2 if separate else 1, "query": 7}
    for layer in range(4):
        for role in range(queries.shape[1]):
            assert worst(queries[layer, role], reference_query(module, layer, role)) < 1e-5


@pytest.mark.parametrize("settings", [{}, {"separate_kv": False}, {"embedding_size": 3, "query_size": 11}])
def test_num_params_equals_built(settings):
    config = EmbeddingMlpQueryConfig(**settings)
    module, terms = config.build(context()), config.num_params(context())
    assert terms["mlp"] == count(module.fc1) + count(module.fc2)
    assert sum(terms.values()) == count(module)


def test_published_parameters():
    """Method, section 4: 2,176 + 24,768 on 32 decoder layers; one query for both costs 20.5k less."""
    decoder = context(decoder=DecoderSpec(4096, 32))
    assert EmbeddingMlpQueryConfig().num_params(decoder) == {"embeddings": 2_176, "mlp": 24_768}
    assert EmbeddingMlpQueryConfig(separate_kv=False).num_params(decoder) == {"embeddings": 2_048, "mlp": 8_320}


@pytest.mark.parametrize("separate", [True, False])
def test_cost_equals_counted_flops(separate):
    config = EmbeddingMlpQueryConfig(embedding_size=5, query_size=7, separate_kv=separate)
    with FlopCounterMode(display=False) as counter:
        config.build(context())()
    assert counter.get_total_flops() == config.cost(context()).per_step
