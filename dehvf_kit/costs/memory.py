"""Bytes that a recipe needs: adapter, training state, frozen weights, and an image's memory in each of its forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dehvf_kit.backbones.base import head_sizes, text_config
from dehvf_kit.backbones.quantization import Quantization, weight_bytes
from dehvf_kit.recipe.graph import Graph
from dehvf_kit.utils.units import si

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
TRAINED_BYTES = 4  # adapters are kept, trained and saved in float32
ADAM_MOMENTS = 2


@dataclass(frozen=True)
class MemoryUsage:
    """Bytes. The last three are stored per image in the decoder's dtype while its sample is computed.

    factored: the fused codes [decoder_layer, kv, patch, code]; built: keys and values [decoder_layer, 2, slot,
    decoder_hidden]; prepended_cache: the key/value cache of the patches where they are tokens of the input instead.
    """

    adapter: int
    gradients_and_optimiser: int
    decoder: int
    vision: Mapping[str, int]
    dtype: str
    factored_per_image: int
    built_per_image: int
    prepended_cache_per_image: int | None

    def rows(self) -> list[tuple[str, str, str]]:
        """Every figure as (what, bytes, a note)."""
        rows = [
            ("adapter", self.adapter, "float32, as saved"),
            ("gradients and AdamW", self.gradients_and_optimiser, "while training; nothing for frozen weights"),
            ("decoder", self.decoder, f"frozen weights, {self.dtype}"),
            *((name, count, "frozen weights") for name, count in self.vision.items()),
        ]
        if self.factored_per_image:
            times = f"{self.built_per_image / self.factored_per_image:.0f} times that"
            rows.append(("memory, factored", self.factored_per_image, f"per image, {self.dtype}: what the kit stores"))
            rows.append(("memory, built", self.built_per_image, f"per image, K and V built: {times}"))
        if self.prepended_cache_per_image:
            cache = "per image, key/value cache with patches as tokens, as in LLaVA"
            rows.append(("patches as tokens", self.prepended_cache_per_image, cache))
        return [(name, si(count, "B"), note) for name, count, note in rows]


def memory_usage(
    graph: Graph,
    decoder: nn.Module,
    towers: Mapping[str, nn.Module],
    decoder_dtype: str,
    vision_dtypes: Mapping[str, str],
    quantization: Quantization | None = None,
) -> MemoryUsage:
    """Count a checked graph on its towers, which may be on the meta device. dtypes, quantization: as recipes write them."""
    trained = sum(sum(graph.num_params(name).values()) for name in graph.nodes)
    dtype = known_dtype(decoder_dtype, decoder)
    width = BYTES[dtype]
    held = [_held(graph, name) for name in graph.order if graph.nodes[name].config.attaches == "decoder"]
    sizes = [tower.spec.num_patches for tower in towers.values()]
    cache = None if None in sizes else _cache_width(decoder) * sum(size or 0 for size in sizes) * width
    return MemoryUsage(
        adapter=trained * TRAINED_BYTES,
        gradients_and_optimiser=trained * TRAINED_BYTES * (1 + ADAM_MOMENTS),
        decoder=weight_bytes(decoder, width, quantization),
        vision={name: _count(tower.model) * BYTES[known_dtype(vision_dtypes[name], tower.model)] for name, tower in towers.items()},
        dtype=dtype,
        factored_per_image=sum(factored for factored, _ in held) * width,
        built_per_image=sum(built for _, built in held) * width,
        prepended_cache_per_image=cache,
    )


def known_dtype(name: str, model: nn.Module) -> str:
    """The dtype weights are loaded in: the recipe's, or for `auto` the one the model's config names."""
    if name == "auto":
        named: Any = getattr(getattr(model, "config", None), "dtype", None)
        name = str(named).removeprefix("torch.")
    return name if name in BYTES else "float32"


def _held(graph: Graph, node: str) -> tuple[int, int]:
    """Numbers of an image's memory in factored and in built form; none where a node gets no fused codes."""
    context = graph.contexts[node]
    if "fused" not in context.wires:
        return 0, 0
    axes = {axis: size or 0 for axis, size in context.axes.items()}
    layers, patches = axes["decoder_layer"], axes["patch"]
    slots = axes.get("slot") or patches
    return layers * axes["kv"] * patches * axes["code"], layers * 2 * slots * axes["decoder_hidden"]


def _cache_width(decoder: nn.Module) -> int:
    """Numbers per token of the key/value cache."""
    return sum(2 * shared * width for _, shared, width in head_sizes(text_config(decoder)))


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
