"""peft's tuners on decoders of many kinds: joint maps, transposed ones, attention beside the FFN, mixtures, other norms."""

from __future__ import annotations

import pytest
import torch
from dehvf_kit_baselines.decoder_outline import in_layer
from dehvf_kit_baselines.peft_tuner import PeftConfig, role_of

from dehvf_kit import map_sites
from dehvf_kit.api import BuildContext, ConfigMismatchError
from dehvf_kit.backbones.decoder import decoder_spec
from dehvf_kit.testing import tiny_decoder

FAMILIES = ["falcon", "gpt_neox", "opt", "mixtral", "gemma3_text"]
NODES = {"lora": PeftConfig(settings={"r": 2}), "norms": PeftConfig(method="ln_tuning")}


@torch.no_grad()
@pytest.mark.nightly
@pytest.mark.parametrize("node", ["lora", "norms"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tuner_fits_starts_exact_acts_and_leaves(family: str, node: str) -> None:
    decoder = tiny_decoder(family).eval()
    config, context = NODES[node], BuildContext({}, decoder_spec(decoder))
    text = torch.arange(3, 13).view(2, 5)
    plain, names = decoder(input_ids=text).logits, [name for name, _ in decoder.named_modules()]
    if node == "lora":
        mine = {path for path, (_, linear, _) in context.decoder.modules.items() if linear is not None and in_layer(path)}
        assert mine == {site.path for site in map_sites(decoder)} and all(role_of(path) for path in mine)
    module = config.build(context)
    assert sum(config.num_params(context).values()) == sum(weight.numel() for weight in module.parameters()) > 0
    module.attach(decoder)
    assert torch.equal(decoder(input_ids=text).logits, plain)
    for weight in module.parameters():
        weight.add_(0.3)
    assert not torch.equal(decoder(input_ids=text).logits, plain)
    module.detach()
    assert torch.equal(decoder(input_ids=text).logits, plain) and [name for name, _ in decoder.named_modules()] == names


@pytest.mark.parametrize("family", ["gpt2", "starcoder2", "bert", "ctrl", "opt"])
def test_ia3_scales_keys_values_and_what_enters_the_down_map(family: str) -> None:
    """Also where a name alone (`c_proj`, `dense`) does not say which map it is."""
    decoder = tiny_decoder(family)
    context, sites = BuildContext({}, decoder_spec(decoder)), map_sites(decoder)
    outer = sum(site.out_features for site in sites if site.role in ("key", "value", "qkv"))
    inner = [site.in_features for site in sites if site.role == "down"]
    config = PeftConfig(method="ia3")
    assert len(inner) == context.decoder.num_layers and sum(config.num_params(context).values()) == outer + sum(inner)
    scaled = {name.rpartition(".ia3_l")[0]: weight.shape for name, weight in config.build(context).named_parameters()}
    assert [tuple(shape) for path, shape in scaled.items() if role_of(path) == "down"] == [(1, width) for width in inner]


def test_a_name_of_peft_that_is_no_method_says_what_to_write() -> None:
    context = BuildContext({}, decoder_spec(tiny_decoder("gpt2")))
    for method, meant in {"dora": "use_dora: true", "LORA": "did you mean 'lora'", "prefix_tuning": "gated_prefix"}.items():
        with pytest.raises(ConfigMismatchError, match=meant):
            PeftConfig(method=method).resolve(context)
    with pytest.raises(ConfigMismatchError, match="no linear map named qkx; it has"):
        PeftConfig(method="ia3", targets=("qkx",)).resolve(context)


def test_the_scale_reaches_alphas_by_pattern() -> None:
    pattern = {"layers.0.self_attn.q_proj": 6}
    config = PeftConfig(settings={"r": 2, "lora_alpha": 2, "alpha_pattern": pattern}, targets=("query",), scale=2.0)
    made = config.made(config.places(decoder_spec(tiny_decoder("llama"))))
    assert (
        made.lora_alpha == 4
        and made.alpha_pattern == {"layers.0.self_attn.q_proj": 12}
        and pattern["layers.0.self_attn.q_proj"] == 6
    )
