"""Each layer's FFN is found by structure, without running the model or reading its weights."""

from __future__ import annotations

import time
from collections import OrderedDict

import pytest
import torch
import transformers
from torch import nn

from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import DecoderError

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
