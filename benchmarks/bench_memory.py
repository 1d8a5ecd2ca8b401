"""The injected product per decoder layer, and what prepares it: both forms, the form `auto` picks, the literal reference.

LLaMA-7B widths (hidden 4096, 256 patches, bottleneck 128, 320 slots). `make benchmark` runs it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from dehvf_kit.components.base import Grouper, runs
from dehvf_kit.components.fuser.cross_attention import CrossAttentionFuser
from dehvf_kit.components.layer_query.embedding_mlp import EmbeddingMlpQuery
from dehvf_kit.components.projector.bottleneck_mlp import BottleneckMlpProjector
from dehvf_kit.ops.ffn_memory import (
    JoinedTable,
    LayerMemory,
    build_keys_values,
    built_memory,
    choose_form,
    factored_memory,
    join_tables,
    literal_ffn,
)

HIDDEN, PATCHES, CODE, SLOTS = 4096, 256, 128, 320
VISION_HIDDEN, VISION_LAYERS, DECODER_LAYERS, GROUPS = 1024, 24, 32, 4
Tables = tuple[JoinedTable | None, JoinedTable | None]


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


def factored(x: torch.Tensor, held: LayerMemory, tables: Tables) -> torch.Tensor | None:
    return factored_memory(x, held, torch.nn.functional.silu, 0.1, tables=tables)


def built(x: torch.Tensor, held: LayerMemory, tables: Tables) -> torch.Tensor:
    return built_memory(x, *build_keys_values(held), torch.nn.functional.silu, 0.1)


def chosen(x: torch.Tensor, held: LayerMemory, tables: Tables) -> torch.Tensor | None:
    form = built if choose_form(x.shape[1], PATCHES, CODE, HIDDEN) == "built" else factored
    return form(x, held, tables)


@pytest.mark.parametrize("form", [factored, built, chosen], ids=["factored", "built", "auto"])
@pytest.mark.parametrize(("batch", "tokens"), [(4, 64), (4, 512), (32, 1), (8, 1), (1, 1)])
def test_one_layers_memory(benchmark: BenchmarkFixture, form: Callable, batch: int, tokens: int) -> None:
    """The joined tables are at hand, as they are for every layer but a batch's first."""
    benchmark.group = f"memory of one layer, batch {batch}, {tokens} tokens"
    held, x = memory(batch), torch.randn(batch, tokens, HIDDEN)
    with torch.no_grad():
        benchmark(form, x, held, join_tables(held, 0.1))


@pytest.mark.parametrize("literal", [True, False], ids=["literal reference", "FFN and factored memory"])
def test_ffn_with_memory(benchmark: BenchmarkFixture, literal: bool) -> None:
    """One sample through a whole FFN with memory: concatenated weights, as the equation reads, and the form that is used."""
    benchmark.group = "FFN with memory, one image, 64 tokens"
    held, x, act = memory(1), torch.randn(1, 64, HIDDEN), torch.nn.functional.silu
    up, gate, down = (torch.randn(*shape) / 64 for shape in ((11008, HIDDEN), (11008, HIDDEN), (HIDDEN, 11008)))

    def used() -> torch.Tensor:
        inner = act(torch.nn.functional.linear(x, gate)) * torch.nn.functional.linear(x, up)
        return torch.nn.functional.linear(inner, down) + factored_memory(x, held, act, 0.1, tables=tables)

    with torch.no_grad():
        tables = join_tables(held, 0.1)
        keys, values = (table[0] for table in build_keys_values(held))
        benchmark(lambda: literal_ffn(x[0], up, gate, down, keys, values, act, 0.1) if literal else used())


def test_fuser_and_projector(benchmark: BenchmarkFixture) -> None:
    """Codes and weights of one image for all 32 layers and both roles."""
    benchmark.group = "preparing the memory of 32 layers, one image"
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
