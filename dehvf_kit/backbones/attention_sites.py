"""Lists the self-attention of every layer of a LLaMA-type decoder: where adapters beside attention are placed.

LLaMA-type means q_proj, k_proj, v_proj and o_proj, linear maps side by side in one module of each layer, with grouped
keys and values or without (LLaMA, Mistral, Qwen2, SmolLM2, Gemma, ...). Reading a model runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import DecoderError, listing

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class AttentionSite:
    """One layer's attention: its place, its path in the model, and its heads, of which several may share one key head."""

    layer_idx: int
    path: str
    num_heads: int
    num_key_value_heads: int
    head_dim: int


def attention_sites(decoder: nn.Module) -> list[AttentionSite]:
    """The attention of every layer that has a feed-forward network, in the order they run.

    Raises: DecoderError where a layer has none of LLaMA's kind, saying what was looked for, or where sizes differ.
    """
    layers = list(dict.fromkeys((site.layer_idx, site.layer_path) for site in ffn_sites(decoder)))
    sites = [_site(decoder, index, path) for index, path in layers]
    sizes = {(site.num_heads, site.num_key_value_heads, site.head_dim) for site in sites}
    if len(sizes) > 1:
        raise DecoderError(f"{type(decoder).__name__}: its layers' attention differs in size: {listing(sizes)}")
    return sites


def _site(decoder: nn.Module, index: int, layer_path: str) -> AttentionSite:
    layer = decoder.get_submodule(layer_path)
    found = [
        (path, module)
        for path, module in layer.named_modules()
        if all(hasattr(getattr(module, name, None), "out_features") for name in PROJECTIONS)
    ]
    head_dim = getattr(found[0][1], "head_dim", None) if len(found) == 1 else None
    if not isinstance(head_dim, int):
        has = f"has {len(found)} of them" if found else f"holds {listing(name for name, _ in layer.named_children())}"
        raise DecoderError(
            f"{type(decoder).__name__}: no attention of LLaMA's kind was found in layer {index} ({layer_path}). Looked "
            f"for: one module with linear maps {', '.join(PROJECTIONS)} and a head_dim; the layer {has}"
        )
    path, module = found[0]
    heads, shared = module.q_proj.out_features // head_dim, module.k_proj.out_features // head_dim
    return AttentionSite(index, f"{layer_path}.{path}" if path else layer_path, heads, shared, head_dim)
