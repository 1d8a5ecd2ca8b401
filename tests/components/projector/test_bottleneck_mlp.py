"""P(u) = fc2(act(fc1(u))), handed on as narrow codes and a readout."""

from __future__ import annotations

import pytest
import torch
from helpers import context, count, randomise, worst
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjector, BottleneckMlpProjectorConfig

FORMULAS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_equals_the_formula(name):
    """Worst error measured: 0."""
    module = BottleneckMlpProjectorConfig(bottleneck_size=5, activation=name).build(context())
    randomise(module)
    patches = torch.randn(2, 8, 16, 24, generator=torch.Generator().manual_seed(0))
    codes, readout = module(patches)
    inner = torch.einsum("blpv,cv->blpc", patches, module.fc1.weight) + module.fc1.bias
    expected = torch.einsum("blpc,hc->blph", FORMULAS[name](inner), module.fc2.weight) + module.fc2.bias

    assert codes.shape == (2, 8, 16, 5)
    assert worst(codes, inner) < 5e-6
    assert worst(readout.activation(codes) @ readout.weight.T + readout.bias, expected) < 5e-6
    assert worst(module.project(patches), expected) < 5e-6


def test_xavier_weights_and_zero_biases():
    torch.manual_seed(0)
    module = BottleneckMlpProjector(1024, 128, 512)
    assert not module.fc1.bias.any() and not module.fc2.bias.any()
    for linear in (module.fc1, module.fc2):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.99 * bound < linear.weight.abs().max() <= bound


@pytest.mark.parametrize("settings", [{}, {"bottleneck_size": 5}])
def test_num_params_equals_built(settings):
    config = BottleneckMlpProjectorConfig(**settings)
    module, terms = config.build(context()), config.num_params(context())
    assert terms == {"fc1": count(module.fc1), "fc2": count(module.fc2)}
    assert sum(terms.values()) == count(module)


def test_cost_equals_counted_flops():
    config = BottleneckMlpProjectorConfig(bottleneck_size=5)
    with FlopCounterMode(display=False) as counter:
        config.build(context())(torch.randn(1, 8, 16, 24))
    assert counter.get_total_flops() == config.cost(context()).per_image


def test_half_precision_features_are_read_in_float32():
    module = BottleneckMlpProjectorConfig(bottleneck_size=5).build(context())
    assert module(torch.randn(1, 2, 3, 24).to(torch.bfloat16))[0].dtype == torch.float32
