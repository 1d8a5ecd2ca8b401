"""Trained parameters of the baselines by closed formulas, for a decoder and an encoder of given sizes.

Symbols: d decoder layers of width h with H heads, v vision blocks of width D, N patches, S memory slots. Widths as
published: projector bottleneck 128, vision adapters 12, LaVIN's adapters 8, LoRA rank 6, prefixes of 10 tokens in all
but the first two layers. Sources: the methods' papers and public code; see each line.
"""

from __future__ import annotations

from dehvf_kit.api import BaselineCost, TowerSizes

PROJECTOR, VISION_ADAPTER, MIXTURE, RANK, PREFIX = 128, 12, 8, 6, 10
CLIP_EMBEDDING = 512


def baseline_costs(sizes: TowerSizes) -> list[BaselineCost]:
    """MemVP (with as many memory slots as DEHVF), LaVIN, LLaMA-Adapter and LLaVA with LoRA."""
    h, d = sizes.decoder_hidden_size, sizes.decoder_layers
    vision_width, blocks = sizes.vision_hidden_size, sizes.vision_layers
    projector = mlp(vision_width, PROJECTOR, h)
    adapters = blocks * 2 * vision_width * VISION_ADAPTER
    prefixed = d - 2
    return [
        BaselineCost(
            name="MemVP",
            parameters=2 * sizes.num_slots * h + projector + adapters + 2 * h,
            unused=2 * h,
            formula="2Sh + projector + v 2D12 + unused 2h",
        ),
        BaselineCost(
            name="LaVIN",
            parameters=d * mixture_adapter(h) + blocks * mixture_adapter(vision_width) + projector + 2 * h,
            added_tokens=7,
            formula="d(20h + 10) + v(20D + 10) + projector + 2h",
        ),
        BaselineCost(
            name="LLaMA-Adapter",
            parameters=prefixed * (PREFIX * h + sizes.decoder_heads) + mlp(CLIP_EMBEDDING, PROJECTOR, h),
            formula="(d - 2)(10h + H) + projection 512-128-h",
        ),
        BaselineCost(
            name="LLaVA-LoRA",
            parameters=projector + adapters + d * 2 * (2 * RANK * h),
            added_tokens=sizes.num_patches,
            formula="projector + v 2D12 + d 2(2 6 h)",
        ),
    ]


def mlp(inner: int, middle: int, outer: int) -> int:
    """Parameters of two linear layers with biases."""
    return inner * middle + middle + middle * outer + outer


def mixture_adapter(width: int) -> int:
    """Parameters of LaVIN's adapter: router width -> 2, down to 8, two ups in two groups, all with biases: 20 width + 10."""
    router = width * 2 + 2
    down = width * MIXTURE + MIXTURE
    up = width * MIXTURE // 2 + width
    return router + down + 2 * up
