"""Each layer's FFN is found by structure, without running the model or reading its weights."""

from __future__ import annotations

import time
from collections import OrderedDict

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN

from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import DecoderError
from dehvf_kit.testing import tiny_models

DECODERS = [
    (transformers.LlamaConfig(), "model.layers.{}.mlp", 4096, "silu"),
    (transformers.OPTConfig(), "model.decoder.layers.{}.fc2", 768, "relu"),
    (transformers.GPT2Config(), "transformer.h.{}.mlp", 768, "gelu_new"),
    (transformers.GPTNeoXConfig(), "gpt_neox.layers.{}.mlp", 6144, "gelu"),
    (transformers.PhiConfig(), "model.layers.{}.mlp", 2048, "gelu_new"),
]
TOWERS = [
    (transformers.CLIPVisionConfig(), "encoder.layers.{}.mlp", 768, "quick_gelu"),
    (transformers.Dinov2Config(), "encoder.layer.{}.mlp", 768, "gelu"),
    (transformers.SiglipVisionConfig(), "encoder.layers.{}.mlp", 768, "gelu_pytorch_tanh"),
]


@pytest.mark.parametrize(("config", "path", "hidden_size", "activation_name"), DECODERS, ids=lambda x: type(x).__name__)
def test_decoder_sites(config, path, hidden_size, activation_name):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    sites = ffn_sites(model)
    assert [site.path for site in sites] == [path.format(idx) for idx in range(config.num_hidden_layers)]
    assert [site.layer_idx for site in sites] == list(range(config.num_hidden_layers))
    assert {site.hidden_size for site in sites} == {hidden_size}
    assert {site.activation_name for site in sites} == {activation_name}
    assert all(isinstance(model.get_submodule(site.path), nn.Module) for site in sites)


@pytest.mark.parametrize(("config", "path", "hidden_size", "activation_name"), TOWERS, ids=lambda x: type(x).__name__)
def test_vision_sites(config, path, hidden_size, activation_name):
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    sites = ffn_sites(model)
    assert [site.path for site in sites] == [path.format(idx) for idx in range(config.num_hidden_layers)]
    assert {(site.hidden_size, site.activation_name) for site in sites} == {(hidden_size, activation_name)}


STACKS = [
    (transformers.MllamaVisionModel, ["transformer.layers.0.mlp", "global_transformer.layers.0.mlp"]),
    (transformers.VJEPA2Model, ["encoder.layer.0.mlp"]),
]


@pytest.mark.parametrize(("model_class", "first_paths"), STACKS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_models_own_stacks_of_one_width_are_counted_through(model_class, first_paths):
    with torch.device("meta"):
        sites = ffn_sites(model_class(model_class.config_class()))
    assert [site.layer_idx for site in sites] == list(range(len(sites)))
    assert [site.path for site in sites if ".0." in site.path] == first_paths


def test_stacks_that_nothing_tells_apart_are_refused():
    with torch.device("meta"):
        model = transformers.SamModel(transformers.SamConfig())
    with pytest.raises(DecoderError, match="several stacks .* mask_decoder.transformer.layers, vision_encoder.layers"):
        ffn_sites(model)


def test_multimodal_model_yields_its_text_decoder():
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig())
    assert ffn_sites(model)[0].path == "model.language_model.layers.0.mlp"


def test_a_7b_model_on_meta_is_read_at_once():
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig())
    start = time.perf_counter()
    assert len(ffn_sites(model)) == 32
    assert time.perf_counter() - start < 2


def test_activation_is_the_ffns_own():
    config = transformers.LlamaConfig(num_hidden_layers=1, hidden_act="gelu")
    with torch.device("meta"):
        site = ffn_sites(transformers.AutoModelForCausalLM.from_config(config))[0]
    x = torch.randn(5)
    assert torch.equal(site.activation(x), nn.functional.gelu(x))


def _interleaved(experts, gate):
    return experts._apply_gate(torch.stack([gate, torch.zeros_like(gate)], -1).flatten())  # (up + 1) * ...


def _halves(experts, gate):
    return experts._apply_gate(torch.cat([gate, torch.zeros_like(gate)]))  # (up + 1) * ...


def _softcapped(experts, gate):
    one = torch.ones_like(gate)
    return experts.act_fn(gate, one) / experts.act_fn.up_softcap(one)


@pytest.mark.parametrize(
    ("model_type", "settings", "own"),
    [
        ("gpt_oss", {}, _interleaved),
        ("gpt_oss", {"swiglu_alpha": 1.25}, _interleaved),
        ("minimax_m3_vl_text", {"swiglu_alpha": 1.25}, _halves),
        ("inkling2_text", {"mlp_gate_softcap": 2.0}, _softcapped),
    ],
)
def test_an_activation_that_code_spells_out(model_type, settings, own):
    """What an expert makes of its gate where nothing multiplies it; gates beyond the clamp of GPT-OSS (7) are left out."""
    model = tiny_models.tiny_decoder(model_type, **settings)
    site = ffn_sites(model)[-1]
    gate = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(site.activation(gate), own(model.get_submodule(site.path).experts, gate), rtol=0, atol=1e-6)


@pytest.mark.nightly
def test_every_family_has_its_configured_activation():
    """Also mixtures whose router has an activation of its own: tanh everywhere that a configuration says `..._act...`."""
    fixed = {"aria_text", "gpt_oss", "hy_v4", "inkling2_text", "minimax_m3_vl_text"}  # what their experts' code says
    unbuilt = {"gemma4_assistant", "gemma4_unified_assistant", "musicgen", "musicgen_melody"}  # alone, in transformers 5.23.0
    compared, others = 0, []
    for model_type in sorted(set(tiny_models.decoder_types()) - fixed - unbuilt):
        config = tiny_models.tiny_config(model_type)
        if not _set_activations(config, "tanh"):
            continue
        try:
            sites = ffn_sites(tiny_models.random_decoder(config))
        except DecoderError:  # without FFN
            continue
        compared += 1
        if {site.activation_name for site in sites} != {"tanh"}:
            others.append(model_type)
    assert not others
    assert compared > 130


def _set_activations(config, name):
    found = 0
    for key, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            found += _set_activations(value, name)
        elif "act" in key and isinstance(value, str) and value in ACT2FN:
            setattr(config, key, name)
            found += 1
        elif isinstance(value, dict) and value.get("name") in ACT2FN:
            value["name"] = name
            found += 1
    return found


@pytest.mark.parametrize("settings", [{}, {"router_hidden_size": 32}])
def test_a_routers_activation_is_not_the_experts(settings):
    """Zaya's router is an MLP with gelu, which looks like an FFN where it is as wide as the states."""
    model = tiny_models.tiny_decoder("zaya", **settings)
    assert {site.activation_name for site in ffn_sites(model)} == {"silu"}


def test_a_router_with_a_sigmoid_beside_narrower_experts():
    settings = {
        "hidden_size": 32,
        "moe_hidden_size": 24,
        "moe_intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.MuseSparkTextConfig(**settings, num_key_value_heads=2, head_dim=8, num_local_experts=4, vocab_size=64)
    model = transformers.MuseSparkTextModel(config)
    assert [(site.path, site.activation_name) for site in ffn_sites(model)] == [("layers.0.mlp", "silu"), ("layers.1.mlp", "silu")]


def test_a_decoder_without_ffn_is_refused():
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.MambaConfig(num_hidden_layers=2))
    with pytest.raises(DecoderError, match="MambaForCausalLM: no layer holds.*Found lists of: MambaBlock"):
        ffn_sites(model)


class Named(nn.Module):
    """A layer as torchvision's: norm and FFN, in a sequence that names its layers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


def test_layers_that_have_names_are_found_by_them():
    model = nn.Module()
    model.blocks = nn.Sequential(OrderedDict(first=Named(), second=Named()))
    sites = ffn_sites(model)
    assert [(site.layer_idx, site.layer_path) for site in sites] == [(0, "blocks.first"), (1, "blocks.second")]
    assert all(isinstance(model.get_submodule(site.path), nn.Module) for site in sites)


@pytest.mark.parametrize("is_moe", [False, True])
def test_a_mixture_that_reads_its_experts_by_keys(is_moe):
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "num_experts": 16, "num_experts_per_tok": 4}
    model = transformers.DogeForCausalLM(transformers.DogeConfig(**sizes, **experts, is_moe=is_moe))
    assert [site.path for site in ffn_sites(model)] == ["model.layers.0.mlp", "model.layers.1.mlp"]


@pytest.mark.parametrize("model_type", ["longcat_flash", "mixtral", "gpt_oss"])
def test_peft_on_stacked_experts_moves_no_site(model_type):
    """peft's wrapper of a parameter has in_features and out_features, as a linear layer has."""
    model = tiny_models.tiny_decoder(model_type)
    plain = [(site.path, site.activation_name) for site in ffn_sites(model)]
    stacked = {name.partition("layers.")[2].partition(".")[2] for name, weight in model.named_parameters() if weight.ndim == 3}
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj"], target_parameters=sorted(stacked)))
    assert [(site.path.removeprefix("base_model.model."), site.activation_name) for site in ffn_sites(tuned)] == plain
