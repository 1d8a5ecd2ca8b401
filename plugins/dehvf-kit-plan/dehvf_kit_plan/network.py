"""What several GPUs add to a plan: the memory of a sharded decoder, and the bytes that each GPU sends per step.

By formula; nothing is measured. A ring all-reduce of b bytes over n GPUs sends 2 (n - 1) / n b from each, an all-gather
(n - 1) / n b (Thakur et al. 2005, section 4). FSDP2 gathers a layer before its forward and again before its backward.
"""

from __future__ import annotations

from torch import nn

from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.backbones.quantization import weight_bytes

GATHERED = 2
"""Layers that are gathered at one time: the one that runs, and the next, which is fetched meanwhile."""
PASSES = 2


def largest_layer(decoder: nn.Module, width: int) -> int:
    """Bytes of the decoder's largest unit: a layer, or what is outside all layers (embeddings and head)."""
    paths = list(dict.fromkeys(site.layer_path for site in ffn_sites(decoder)))
    layers = [sum(p.numel() for p in decoder.get_submodule(path).parameters()) * width for path in paths]
    rest = weight_bytes(decoder, width, None) - sum(layers)
    return max(rest, *layers)


def sharded_bytes(decoder: int, layer: int, gpus: int) -> int:
    """Bytes per GPU of a decoder sharded over `gpus`: its share, and the units that are gathered at one time."""
    return -(-decoder // gpus) + min(GATHERED, gpus) * layer


def traffic(adapter: int, sharded_decoder: int, gpus: int, accumulation: int) -> int:
    """Bytes that one GPU sends per step: the adapter's gradients once, a sharded decoder's weights twice per batch."""
    gradients = 2 * adapter * (gpus - 1) // gpus
    return gradients + PASSES * accumulation * sharded_decoder * (gpus - 1) // gpus
