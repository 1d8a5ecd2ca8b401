"""P(u) = W u + b: the codes are the patches, the readout is the map."""

from __future__ import annotations

import torch
from helpers import context, count, tiny_decoder, tiny_model, tokens, worst

from dehvf_kit.components.projector.linear import LinearProjectorConfig


def test_equals_the_formula():
    """Worst error measured: 0."""
    config = LinearProjectorConfig()
    module = config.build(context())
    patches = torch.randn(2, 8, 16, 24, generator=torch.Generator().manual_seed(0))
    codes, readout = module(patches)
    assert torch.equal(codes, patches)
    expected = torch.einsum("blpv,hv->blph", patches, module.fc.weight) + module.fc.bias
    assert worst(readout.activation(codes) @ readout.weight.T + readout.bias, expected) < 5e-6
    assert config.resolve(context()) == {"code": 24}
    assert sum(config.num_params(context()).values()) == count(module)


def test_stands_in_for_the_bottleneck_in_a_recipe():
    model = tiny_model(graph={"projector": {"type": "linear"}})
    features = torch.randn(3, 8, 17, 24, generator=torch.Generator().manual_seed(0))
    logits = model(tokens(), vision_features=features).logits
    assert worst(logits, tiny_decoder()(input_ids=tokens()).logits) > 1e-3
    model.nodes.injector.form = "built"
    assert worst(model(tokens(), vision_features=features).logits, logits) < 1e-5, "worst measured: 2.9e-7"
