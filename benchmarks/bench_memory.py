"""The injected product per decoder layer, and what prepares it: both forms, the form `auto` picks, and the fuser.

LLaMA-7B widths (hidden 4096, 256 patches, bottleneck 128, 320 slots). `make benchmark` runs it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from dehvf_kit.components.fuser.cross_attention import CrossAttentionFuser
from dehvf_kit.components.grouper.base import Grouper, runs
from dehvf_kit.components.layer_query.embedding_mlp import EmbeddingMlpQuery
from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjector
from dehvf_kit.ops.ffn_memory import LayerMemory, build_keys_values, built_memory, choose_form, factored_memory

HIDDEN, PATCHES, CODE, SLOTS = 4096, 256, 128, 320
VISION_HIDDEN, VISION_LAYERS, DECODER_LAYERS, GROUPS = 1024, 24, 32, 4


def memory(batch: int) -> LayerMemory:
    torch.manual_seed(0)
    codes = torch.randn(2, batch, PATCHES, CODE)
    return LayerMemory(
        codes[0],
        codes[1],
        torch.randn(HIDDEN, CODE) / 64,
        torch.zeros(HIDDEN),
        0.02 * torch.randn(SLOTS, HIDDEN),
        torch.zeros(SLOTS, HIDDEN),
    )


def factored(x: torch.Tensor, held: LayerMemory) -> torch.Tensor | None:
    return factored_memory(x, held, torch.nn.functional.silu, 0.1)


def built(x: torch.Tensor, held: LayerMemory) -> torch.Tensor:
    return built_memory(x, *build_keys_values(held), torch.nn.functional.silu, 0.1)


def chosen(x: torch.Tensor, held: LayerMemory) -> torch.Tensor | None:
    return (built if choose_form(x.shape[1], PATCHES, CODE, HIDDEN) == "built" else factored)(x, held)


@pytest.mark.parametrize("form", [factored, built, chosen], ids=["factored", "built", "auto"])
@pytest.mark.parametrize(("batch", "tokens"), [(4, 64), (4, 512), (32, 1), (8, 1), (1, 1)])
def test_one_layers_memory(benchmark: BenchmarkFixture, form: Callable, batch: int, tokens: int) -> None:
    benchmark.group = f"memory of one layer, batch {batch}, {tokens} tokens"
    held, x = memory(batch), torch.randn(batch, tokens, HIDDEN)
    with torch.no_grad():
        benchmark(form, x, held)


def test_fuser_and_projector(benchmark: BenchmarkFixture) -> None:
    """Codes and weights of one picture for all 32 layers and both roles."""
    benchmark.group = "preparing the memory of 32 layers, one picture"
    extra = [[*run, VISION_LAYERS - 2] for run in runs(VISION_LAYERS, GROUPS)]
    grouper, query = Grouper(extra, DECODER_LAYERS), EmbeddingMlpQuery(DECODER_LAYERS)
    projector, fuser = BottleneckMlpProjector(VISION_HIDDEN, CODE, HIDDEN), CrossAttentionFuser(VISION_HIDDEN)
    features = torch.randn(1, VISION_LAYERS, PATCHES + 1, VISION_HIDDEN)

    def prepare() -> torch.Tensor:
        members, levels = grouper(features[:, :, 0])
        codes, _ = projector(features[:, :, 1:])
        return fuser(members, levels, query(), codes)[0]

    with torch.no_grad():
        benchmark(prepare)
