"""The rival methods by closed formulas, for a decoder and an encoder of given sizes.

Symbols: d decoder layers of width h with H heads, v vision blocks of width D, N patches, S memory slots. Widths as
published: projector bottleneck 128, vision adapters 12, LaVIN's adapters 8, LoRA rank 6, prefixes of 10 tokens in all
but the first two layers. Sources: the methods' papers and public code; see each line.
"""

from __future__ import annotations

from dataclasses import dataclass

PROJECTOR, VISION_ADAPTER, MIXTURE, RANK, PREFIX = 128, 12, 8, 6, 10
CLIP_EMBEDDING = 512


@dataclass(frozen=True)
class Sizes:
    """What the formulas need to know of both towers."""

    decoder_hidden: int
    decoder_layers: int
    decoder_heads: int
    vision_hidden: int
    vision_layers: int
    patches: int


@dataclass(frozen=True)
class Rival:
    """trained parameters; unused: those of them that no computation reads; tokens a picture adds to the text."""

    name: str
    parameters: int
    unused: int
    added_tokens: int
    formula: str


def rivals(sizes: Sizes, slots: int) -> list[Rival]:
    """MemVP (with `slots` memory slots), LaVIN, LLaMA-Adapter and LLaVA with LoRA."""
    h, d = sizes.decoder_hidden, sizes.decoder_layers
    wide, blocks = sizes.vision_hidden, sizes.vision_layers
    projector = mlp(wide, PROJECTOR, h)
    adapters = blocks * 2 * wide * VISION_ADAPTER
    prefixed = d - 2
    return [
        Rival("MemVP", 2 * slots * h + projector + adapters + 2 * h, 2 * h, 0, "2Sh + projector + v 2D12 + unused 2h"),
        Rival(
            "LaVIN",
            d * mixture_adapter(h) + blocks * mixture_adapter(wide) + projector + 2 * h,
            0,
            7,
            "d(20h + 10) + v(20D + 10) + projector + 2h",
        ),
        Rival(
            "LLaMA-Adapter",
            prefixed * (PREFIX * h + sizes.decoder_heads) + mlp(CLIP_EMBEDDING, PROJECTOR, h),
            0,
            0,
            "(d - 2)(10h + H) + projection 512-128-h",
        ),
        Rival(
            "LLaVA-LoRA",
            projector + adapters + d * 2 * (2 * RANK * h),
            0,
            sizes.patches,
            "projector + v 2D12 + d 2(2 6 h)",
        ),
    ]


def mlp(inner: int, middle: int, outer: int) -> int:
    """Two layers with biases."""
    return inner * middle + middle + middle * outer + outer


def mixture_adapter(width: int) -> int:
    """LaVIN's adapter: router width -> 2, down to 8, two ups in two groups; all with biases: 20 width + 10."""
    router = width * 2 + 2
    down = width * MIXTURE + MIXTURE
    up = width * MIXTURE // 2 + width
    return router + down + 2 * up
