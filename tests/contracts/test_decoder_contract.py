"""The contract on a representative dozen decoder types; the whole matrix is `python -m tools.support.matrix`."""

from __future__ import annotations

import pytest
import torch

from dehvf_kit.backbones.base import config_value, head_sizes
from dehvf_kit.errors import DecoderError, DehvfError
from dehvf_kit.testing import CONTRACT, Broken, Subject, check_decoder, run_contract, tiny_decoder
from dehvf_kit.testing.decoder_contract import none_broken, run_items
from tools.support.plan_item import MATRIX

# What each stands for: plain, fc1/fc2 in the layer, parallel, intermediate/output, residual handed to the FFN, fused
# weights, mixtures (overwritten input, tuple result, shared experts), FFNs in some layers only, one shared FFN, two
# FFNs a layer, tokens first, two stacks that run several times.
DOZEN = [
    "llama",
    "opt",
    "gpt_neox",
    "bert",
    "bloom",
    "gpt2",
    "mixtral",
    "gpt_oss",
    "deepseek_v3",
    "nemotron_h",
    "zamba",
    "longcat_flash",
    "xlnet",
    "hrm_text",
]


@pytest.mark.parametrize("model_type", DOZEN)
def test_contract(model_type):
    check_decoder(model_type, [item for item in CONTRACT if item != "compile"])


@pytest.mark.parametrize("model_type", ["gemma4_text", "dots3_note"])
def test_recipes_are_built_planned_saved_and_loaded_where_layers_differ(model_type):
    none_broken(model_type, run_items(MATRIX, Subject(lambda: tiny_decoder(model_type)), ["recipe", "plan"]))


@torch.no_grad()
def test_sizes_of_heads_that_differ_between_layers_are_those_of_the_cache():
    model = tiny_decoder("gemma4_text")
    cache = model(torch.ones(1, 3, dtype=torch.long), use_cache=True).past_key_values
    held = sum(2 * layer.keys.numel() for layer in cache.layers)
    sizes = head_sizes(model.config)
    assert len({width for _, _, width in sizes}) == 2, "the layers of this family differ"
    assert 3 * sum(2 * shared * width for _, shared, width in sizes) == held
    assert config_value(model.config, "head_dim") == [width for _, _, width in sizes]


@pytest.mark.nightly
@pytest.mark.parametrize("model_type", ["llama", "opt", "mixtral"])
def test_compiled_it_keeps_the_contract(model_type):
    check_decoder(model_type, ["compile"])


def test_what_a_family_cannot_is_told_apart_from_what_the_kit_breaks():
    results = {result.item: result for result in run_contract("xlnet", ["checkpointing", "zero memory"])}
    assert results["checkpointing"].status == "family"
    assert results["zero memory"].status == "pass"


def test_a_broken_decoder_is_named_with_the_items_that_do_not_hold():
    def make() -> torch.nn.Module:
        model = tiny_decoder("llama")
        model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 0 + torch.rand(()))
        return model

    with pytest.raises(Broken, match="(?s)LlamaForCausalLM: .* of 1 items of the contract do not hold.token by token: "):
        check_decoder(make, ["token by token"])


def test_wrong_names_are_refused():
    with pytest.raises(DehvfError, match="no item 'zero memry'; did you mean 'zero memory'"):
        run_contract("llama", ["zero memry"])
    with pytest.raises(DecoderError, match="no model type 'lama'; did you mean 'llama'"):
        tiny_decoder("lama")
