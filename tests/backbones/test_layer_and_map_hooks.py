"""Hooks between the layers and at the linear maps; over the families they are items of the decoder contract."""

from __future__ import annotations

import pytest
import torch

from dehvf_kit import hook_layers, hook_maps, layer_sites, low_rank, map_sites
from dehvf_kit.errors import DecoderError, ShapeError
from dehvf_kit.testing import run_contract, tiny_decoder

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])


@pytest.fixture(scope="module")
def llama():
    return tiny_decoder("llama").eval().requires_grad_(False)


@torch.no_grad()
def test_before_and_after_add_to_the_states_that_enter_and_leave_a_layer(llama):
    sites = layer_sites(llama)
    assert [site.path for site in sites] == [f"model.layers.{index}" for index in range(len(sites))]
    more = torch.randn(2, 1, sites[0].hidden_size)
    untouched = llama(IDS).logits
    with hook_layers(llama, sites[1:], "before", lambda index, x: more.expand_as(x)):
        before = llama(IDS).logits
    with hook_layers(llama, sites[:1], "after", lambda index, x: more.expand_as(x)):
        after = llama(IDS).logits
    assert len(sites) == 2 and torch.equal(before, after) and not torch.equal(after, untouched)
    shifted = llama(inputs_embeds=llama.get_input_embeddings()(IDS) + more).logits
    with hook_layers(llama, sites[:1], "before", lambda index, x: more.expand_as(x)):
        assert torch.equal(llama(IDS).logits, shifted)


@torch.no_grad()
def test_a_low_rank_delta_and_a_scale_are_other_weights(llama):
    """Each row has a weight of its own; the reference changes the weights of a copy, row by row. Worst seen 3e-7."""
    sites = [site for site in map_sites(llama) if site.role in ("query", "value", "down")]
    assert {site.role for site in map_sites(llama)} == {"query", "key", "value", "output", "gate", "up", "down"}
    draw = torch.Generator().manual_seed(0)
    a = [torch.randn(2, site.in_features, 3, generator=draw) * 0.1 for site in sites]
    b = [torch.randn(site.out_features, 3, generator=draw) * 0.1 for site in sites]
    scale = [1 + 0.1 * torch.randn(site.in_features, generator=draw) for site in sites]
    with hook_maps(llama, sites, lambda index, x: low_rank(x, a[index], b[index]), lambda index: scale[index]):
        found = llama(IDS).logits
    for row in range(2):
        copy = tiny_decoder("llama").eval()
        for index, site in enumerate(sites):
            weight = copy.get_submodule(site.path).weight
            weight.add_(b[index] @ a[index][row].T).mul_(scale[index])
        assert (copy(IDS[row : row + 1]).logits[0] - found[row]).abs().max() < 1e-5


def test_what_does_not_fit_is_refused(llama):
    with pytest.raises(DecoderError, match="where is 'inside'"):
        hook_layers(llama, layer_sites(llama), "inside", lambda index, x: None)
    with hook_layers(llama, layer_sites(llama), "after", lambda index, x: x[..., :1]), pytest.raises(ShapeError, match="returned"):
        llama(IDS)
    with hook_maps(llama, map_sites(llama), lambda index, x: x[..., :1]), pytest.raises(ShapeError, match="hook_maps at"):
        llama(IDS)
    with pytest.raises(ShapeError, match="rows must be a multiple"):
        low_rank(torch.zeros(3, 1, 4), torch.zeros(2, 4, 1), torch.zeros(4, 1))
    with pytest.raises(DecoderError, match="nothing can be added between its layers: its layers pass on several streams"):
        layer_sites(tiny_decoder("gemma3n"))
    with pytest.raises(DecoderError, match="nothing can be added at its linear maps"):
        map_sites(tiny_decoder("prophetnet"))


@pytest.mark.parametrize("model_type", ["gpt2", "openai-gpt", "falcon", "glm_moe_dsa"])
def test_fused_maps_lists_and_indexers(model_type):
    assert [result.status for result in run_contract(model_type, ["layers", "maps"])] == ["pass", "pass"]
