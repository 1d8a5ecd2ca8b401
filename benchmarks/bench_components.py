"""Every component alone at 7B shapes: 24 vision layers of 256 patches, 32 decoder layers, 4 groups, one image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import CLIPVisionConfig, CLIPVisionModel

from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.components.base import Grouper, runs
from dehvf_kit.components.fuser.cross_attention import CrossAttentionFuser
from dehvf_kit.components.fuser.mean import MeanFuser
from dehvf_kit.components.injector.ffn_memory import FfnMemoryInjector
from dehvf_kit.components.layer_query.embedding_mlp import EmbeddingMlpQuery
from dehvf_kit.components.position.learned import LearnedPosition
from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjector
from dehvf_kit.components.vision_adapter.parallel import ParallelVisionAdapter

HIDDEN, PATCHES, CODE, SLOTS = 4096, 256, 128, 320
VISION_HIDDEN, VISION_LAYERS, DECODER_LAYERS, GROUPS = 1024, 24, 32, 4


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Each component's module, and what the ones before it hand over."""
    torch.manual_seed(0)
    features = torch.randn(1, VISION_LAYERS, PATCHES + 1, VISION_HIDDEN)
    grouper = Grouper([[*run, VISION_LAYERS - 2] for run in runs(VISION_LAYERS, GROUPS)], DECODER_LAYERS)
    query, projector = EmbeddingMlpQuery(DECODER_LAYERS), BottleneckMlpProjector(VISION_HIDDEN, CODE, HIDDEN)
    fuser, position = CrossAttentionFuser(VISION_HIDDEN), LearnedPosition(SLOTS, HIDDEN)
    with torch.no_grad():
        members, levels = grouper(features[:, :, 0])
        codes, readout = projector(features[:, :, 1:])
        queries = query()
        fused, _ = fuser(members, levels, queries, codes)
    return locals()


STEPS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "grouper": lambda p: p["grouper"](p["features"][:, :, 0]),
    "layer query": lambda p: p["query"](),
    "projector": lambda p: p["projector"](p["features"][:, :, 1:]),
    "fuser": lambda p: p["fuser"](p["members"], p["levels"], p["queries"], p["codes"]),
    "fuser, weights alone": lambda p: p["fuser"].weigh(p["members"], p["levels"], p["queries"]),
    "mean fuser": lambda p: MeanFuser()(p["levels"], p["codes"]),
    "position": lambda p: p["position"](),
    "injector, holding a batch": lambda p: FfnMemoryInjector()(p["fused"], p["readout"], *p["position"]()),
}


@pytest.mark.parametrize("name", STEPS)
def test_component(benchmark: BenchmarkFixture, parts: dict[str, Any], name: str) -> None:
    benchmark.group = "components, one image, forward"
    with torch.no_grad():
        benchmark(STEPS[name], parts)


@pytest.mark.parametrize("adapted", [False, True], ids=["without", "with"])
def test_vision_adapter(benchmark: BenchmarkFixture, adapted: bool) -> None:
    """A small encoder (4 blocks, 256 wide) with and without adapters: the difference is theirs."""
    benchmark.group = "vision adapter, 4 blocks, 256 wide, 4 images"
    config = CLIPVisionConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4)
    tower = VisionTower(CLIPVisionModel(config).eval(), image_size=224)
    adapter = ParallelVisionAdapter(4, 256)
    if adapted:
        adapter.attach(tower.model)
    adapter.eval()
    pixels = torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        benchmark(tower, pixels)
