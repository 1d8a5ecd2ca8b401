"""Attention is found by what it calls, whatever its maps are, with shared key heads or without; other kinds are refused."""

from __future__ import annotations

import pytest

from dehvf_kit.backbones.decoder import AttentionSite, attention_sites, decoder_spec
from dehvf_kit.errors import DecoderError
from dehvf_kit.testing.tiny_models import tiny_decoder

PATHS = {
    "llama": "model.layers.0.self_attn",
    "gemma": "model.layers.0.self_attn",
    "gpt2": "transformer.h.0.attn",
    "gpt_neox": "gpt_neox.layers.0.attention",
    "phi3": "model.layers.0.self_attn",
    "opt": "model.decoder.layers.0.self_attn",
    "bert": "bert.encoder.layer.0.attention.self",
    "bart": "model.decoder.layers.0.self_attn",  # and not the cross-attention beside it
}


@pytest.mark.parametrize("family", PATHS)
def test_every_layer_has_one(family: str) -> None:
    decoder = tiny_decoder(family)
    sites = attention_sites(decoder)
    assert [site.layer_idx for site in sites] == list(range(decoder.config.num_hidden_layers))
    assert sites[0].path == PATHS[family]
    spec = decoder_spec(decoder)
    assert (spec.num_heads, spec.num_key_value_heads, spec.head_dim) == (
        sites[0].num_heads,
        sites[0].num_key_value_heads,
        sites[0].head_dim,
    )


def test_shared_key_heads_are_counted() -> None:
    decoder = tiny_decoder("llama", num_attention_heads=4, num_key_value_heads=2)
    assert attention_sites(decoder)[0] == AttentionSite(0, "model.layers.0.self_attn", 4, 2, 8)


def test_layers_may_differ_in_the_width_of_a_head() -> None:
    """Gemma 4: wider heads in every other layer."""
    sites = attention_sites(tiny_decoder("gemma4_text"))
    assert len({site.head_dim for site in sites}) == 2 and len({site.num_heads for site in sites}) == 1


@pytest.mark.parametrize("family", ["bloom", "falcon", "gptj", "qwen3_next"])
def test_other_kinds_are_refused_naming_what_was_looked_for(family: str) -> None:
    decoder = tiny_decoder(family)
    looked = r"no attention was found in layer 0 .*Looked for: one module that calls transformers' attention interface; the layer"
    with pytest.raises(DecoderError, match=looked):
        attention_sites(decoder)
    assert decoder_spec(decoder).num_heads == 0
