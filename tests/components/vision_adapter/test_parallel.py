"""y = FFN(x) + scale * B(GELU(A x)) in every vision block."""

from __future__ import annotations

import pytest
import torch
from helpers import VISION_CLASSES, context, count, pixels, randomise, tiny_vision, worst
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dehvf_kit.api.shapes import VisionSpec
from dehvf_kit.components.vision_adapter.parallel import ParallelVisionAdapter, ParallelVisionAdapterConfig
from dehvf_kit.errors import VisionError


class Beside(nn.Module):
    """An FFN with the adapter's formula beside it, by module and not by hook."""

    def __init__(self, ffn: nn.Module, down: torch.Tensor, up: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.ffn, self.maps, self.scale = ffn, (down, up), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, up = self.maps
        return self.ffn(x) + self.scale * F.gelu(x @ down.T) @ up.T


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2"])
def test_equals_the_formula_in_every_block(vision):
    """Worst error measured: 0."""
    tower, reference = tiny_vision(vision), tiny_vision(vision)
    module = ParallelVisionAdapter(8, 24, 3, scale=0.5)
    randomise(module)
    layers = [part for part in reference.modules() if isinstance(part, nn.ModuleList) and len(part) == 8][0]
    for index, layer in enumerate(layers):
        layer.mlp = Beside(layer.mlp, module.down[index], module.up[index], 0.5)
    untouched = tower(pixels()).last_hidden_state
    module.attach(tower)
    module.eval()
    adapted = tower(pixels()).last_hidden_state

    assert worst(adapted, reference(pixels()).last_hidden_state) < 1e-5
    assert worst(adapted, untouched) > 0.1
    module.detach()
    assert torch.equal(tower(pixels()).last_hidden_state, untouched)


@pytest.mark.parametrize("vision", VISION_CLASSES)
def test_starts_as_nothing(vision):
    tower = tiny_vision(vision)
    before = tower(pixels()).last_hidden_state
    module = ParallelVisionAdapter(8, 24)
    module.attach(tower)
    assert torch.equal(tower(pixels()).last_hidden_state, before), "B starts at zero"
    assert module.down.any()


def test_num_params_equals_built_and_published():
    config = ParallelVisionAdapterConfig()
    assert sum(config.num_params(context()).values()) == count(config.build(context()))
    large = context(vision=VisionSpec(1024, 24, 256))
    assert sum(config.num_params(large).values()) == 589_824


def test_cost_equals_counted_flops():
    config = ParallelVisionAdapterConfig(bottleneck_size=3)
    tower, module = tiny_vision(), config.build(context())

    def flops() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tower(pixels(1))
        return counter.get_total_flops()

    before = flops()
    module.attach(tower)
    assert flops() - before == config.cost(context()).per_image


@pytest.mark.parametrize(("layers", "width"), [(7, 24), (8, 23)])
def test_another_tower_is_refused(layers, width):
    tower = tiny_vision()
    with pytest.raises(VisionError, match=f"vision adapter built for {layers} blocks of width {width}, but the tower has 8"):
        ParallelVisionAdapter(layers, width).attach(tower)
    assert not any(part._forward_hooks for part in tower.modules())
