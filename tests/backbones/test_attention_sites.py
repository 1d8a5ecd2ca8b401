"""Attention of LLaMA's kind is found by structure, with shared key heads or without, and other kinds are refused in words."""

from __future__ import annotations

import pytest

from dehvf_kit.backbones.decoder import AttentionSite, attention_sites, decoder_spec
from dehvf_kit.errors import DecoderError
from dehvf_kit.testing.tiny_models import tiny_decoder


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma", "olmo"])
def test_every_layer_has_one(family: str) -> None:
    decoder = tiny_decoder(family)
    sites = attention_sites(decoder)
    layers = decoder.config.num_hidden_layers
    assert [site.layer_idx for site in sites] == list(range(layers))
    for site in sites:
        module = decoder.get_submodule(site.path)
        assert module.q_proj.out_features == site.num_heads * site.head_dim
        assert module.k_proj.out_features == site.num_key_value_heads * site.head_dim
    spec = decoder_spec(decoder)
    assert (spec.num_heads, spec.num_key_value_heads, spec.head_dim) == (
        sites[0].num_heads,
        sites[0].num_key_value_heads,
        sites[0].head_dim,
    )


def test_shared_key_heads_are_counted() -> None:
    decoder = tiny_decoder("llama", num_attention_heads=4, num_key_value_heads=2)
    assert attention_sites(decoder)[0] == AttentionSite(0, "model.layers.0.self_attn", 4, 2, 8)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "opt", "phi"])
def test_other_kinds_are_refused_naming_what_was_looked_for(family: str) -> None:
    decoder = tiny_decoder(family)
    looked = r"no attention of LLaMA's kind was found in layer 0 .*Looked for: one module with linear maps q_proj, k_proj"
    with pytest.raises(DecoderError, match=looked):
        attention_sites(decoder)
    assert decoder_spec(decoder).num_heads == 0
