"""Counted FLOPs equal what torch's own counter sees, on tiny models: no tolerance, the counts are whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DINOV2, HIDDEN, LAYERS, PATCHES, VIT, pixels, raw_recipe, tiny_decoder, tiny_model, tiny_vision, tokens, worst
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dehvf_kit
from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.costs.flops import component_costs, count_flops, counted_flops, decoder_flops, vision_flops
from dehvf_kit.model.builder import build_on_meta
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.testing import vision_models
from dehvf_kit.testing.tiny_models import tiny_decoder as tiny_decoder_of

TWO = {
    "vision": {
        "config": None,
        "image": None,
        "clip": {"config": {"model_type": "clip_vision_model", **VIT}, "image": {"size": 32}},
        "dino": {"config": {"model_type": "dinov2", **DINOV2}, "image": {"size": 32}},
    },
    "graph": {
        "vision_adapter": None,
        "grouper": None,
        "left": {"role": "grouper", "type": "contiguous", "num_groups": 2, "inputs": {"globals": "clip"}},
        "right": {"role": "grouper", "type": "contiguous", "num_groups": 2, "inputs": {"globals": "dino"}},
        "merger": {
            "type": "concat_levels",
            "hidden_size": 12,
            "inputs": {"patches": ["clip", "dino"], "members": ["left", "right"], "levels": ["left", "right"]},
        },
        "projector": {"inputs": {"patches": "merger"}},
        "fuser": {"inputs": {"members": "merger", "levels": "merger"}},
    },
}
GRAPHS = {
    "dehvf": {},
    "same_query": {"layer_query": {"separate_kv": False}},
    "mean": {"layer_query": None, "fuser": {"type": "mean"}},
    "linear": {"projector": {"type": "linear"}},
    "tokens": {"layer_query": {"type": "learned_tokens", "query_size": 8}},
    "uneven": {"grouper": {"num_groups": 3}},
}


def counted(run: Callable[[], Any]) -> int:
    """FLOPs that torch's counter sees; attention written out, so that every product is seen."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [5, 12])
def test_a_llama_costs_what_the_counter_sees(length: int) -> None:
    decoder = tiny_decoder(attn_implementation="eager")
    flops = decoder_flops(decoder)
    assert flops.forward(length) == counted(lambda: decoder(input_ids=tokens(1, length)))
    assert flops.forward(length, logits=1) == counted(lambda: decoder(input_ids=tokens(1, length), logits_to_keep=1))


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "opt", "gpt_neox", "phi3"])
def test_other_families_cost_what_the_counter_sees(family: str) -> None:
    decoder = tiny_decoder_of(family, attn_implementation="eager")
    assert decoder_flops(decoder).forward(6) == counted(lambda: decoder(input_ids=tokens(1, 6) % 90))


def test_a_mixture_counts_the_experts_a_token_visits() -> None:
    decoder = tiny_decoder_of("mixtral")
    config = decoder.config
    assert (config.num_local_experts, config.num_experts_per_tok) == (4, 2)
    experts = 3 * config.num_local_experts * config.hidden_size * config.intermediate_size * config.num_hidden_layers
    every = sum(p.numel() for p in decoder.parameters() if p.ndim > 1) - config.vocab_size * config.hidden_size
    flops = decoder_flops(decoder)
    assert flops.weights + flops.head == every - experts // 2


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_an_encoder_costs_what_the_counter_sees(kind: str) -> None:
    model = tiny_vision(kind, attn_implementation="eager")
    tower = VisionTower(model, 32)
    assert vision_flops(tower) == counted(lambda: model(pixels(1)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_encoder_without_a_config_is_counted_by_running_it(device: str, dtype: torch.dtype) -> None:
    from torchvision.models import VisionTransformer

    with torch.device(device):
        model = VisionTransformer(image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32)
    tower = VisionTower(model.to(dtype), 32)
    assert tower.num_prefix_tokens() == 1
    tokens, width = 17, 16
    block = 2 * tokens * (4 * width * width + 2 * width * 32) + 4 * width * tokens**2
    assert vision_flops(tower) == 2 * 16 * (3 * 8 * 8) * width + 3 * block
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("model_type", "tokens"), [("dinov2_with_registers", 5), ("siglip_vision_model", 0), ("deit", 2), ("qwen2_vl_vision", 0)]
)
def test_prefix_tokens_are_those_the_blocks_see(model_type: str, tokens: int) -> None:
    model = vision_models.tiny_vision(model_type)
    assert VisionTower(model, 24).num_prefix_tokens() == tokens
    assert VisionTower(model.to("meta"), 24).num_prefix_tokens() == tokens


class Unmovable(nn.Module):
    """An encoder without a config whose forward asks for a value, which the meta device has not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_vision("vit", num_hidden_layers=2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.inner(pixel_values * (1.0 + 0.0 * pixel_values.sum().item())).last_hidden_state


def test_what_cannot_be_counted_is_not_known() -> None:
    assert vision_flops(VisionTower(Unmovable(), 32)) == vision_flops(VisionTower(Unmovable().inner, 32))
    assert vision_flops(VisionTower(Unmovable().to("meta"), 32)) is None


def assert_costs_are_what_the_counter_sees(model: DehvfModel, pictures: Any) -> None:
    model.nodes.requires_grad_(False)  # the counter hooks modules whose inputs want gradients
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        features = model.vision_features(pictures)
        with FlopCounterMode(display=False) as counter:
            model.run_graph(1, vision_features=features)
    seen = counter.get_flop_counts()
    for node, cost in component_costs(model.graph).items():
        if node != "vision_adapter":
            assert cost.per_step + cost.per_image == sum(seen.get(type(model.nodes[node]).__name__, {}).values()), node


@pytest.mark.parametrize("name", [*GRAPHS, "two_encoders"])
def test_every_component_costs_what_the_counter_sees(name: str) -> None:
    towers = {"clip": tiny_vision("clip"), "dino": tiny_vision("dinov2")} if name == "two_encoders" else tiny_vision()
    sections = TWO if name == "two_encoders" else {"graph": GRAPHS[name]}
    model = dehvf_kit.build(dehvf_kit.parse_recipe(raw_recipe(**sections)), decoder=tiny_decoder(), vision=towers)
    assert_costs_are_what_the_counter_sees(model, {tower: pixels(1) for tower in towers} if name == "two_encoders" else pixels(1))


@pytest.mark.parametrize("name", ["dehvf", "mean"])
def test_a_shallow_decoder_has_its_patches_mixed_before_they_are_projected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one layer mixes twice at most where the projector would run on eight vision layers."""
    graph = {**GRAPHS[name], "grouper": {"num_groups": 1}}
    model = tiny_model(decoder=tiny_decoder(num_hidden_layers=1), graph=graph)
    assert model.nodes["projector"].mix_first
    features = model.vision_features(pixels(2))
    fused = model.run_graph(2, vision_features=features)["fuser"][0]
    model.nodes["projector"].mix_first = False
    assert worst(fused, model.run_graph(2, vision_features=features)["fuser"][0]) < 1e-5  # two orders of one float32 sum
    model.nodes["projector"].mix_first = True
    with monkeypatch.context() as patch:  # as for a fuser that knows nothing of it
        patch.setattr(type(model.graph.nodes["fuser"].config), "takes_unprojected", False)
        assert worst(fused, model.run_graph(2, vision_features=features)["fuser"][0]) < 1e-5
    assert_costs_are_what_the_counter_sees(model, pixels(1))


def test_a_view_of_a_weight_is_counted_without_gradients() -> None:
    """torch 2.14.1's tracker of modules fails there: "Expected gradient function to be set"."""
    product = nn.Linear(4, 6, bias=False)
    with torch.no_grad(), counted_flops() as counter:
        product(nn.Embedding(3, 4).weight.unsqueeze(1))
    assert counter.get_total_flops() == 2 * 3 * 4 * 6


def test_the_vision_adapter_costs_what_it_adds_to_the_encoder() -> None:
    vision = tiny_vision()
    alone = counted(lambda: vision(pixels(1)))
    model = tiny_model(vision=vision)
    assert component_costs(model.graph)["vision_adapter"].per_image == counted(lambda: vision(pixels(1))) - alone


@pytest.mark.parametrize("visual_in", [["key", "value"], ["key"], ["value"]])
def test_the_injector_costs_what_it_adds_to_the_decoder(visual_in: list[str]) -> None:
    decoder = tiny_decoder()
    ids = tokens(1, 6)
    alone = counted(lambda: decoder(input_ids=ids))
    model = tiny_model(decoder=decoder, graph={"injector": {"visual_in": visual_in, "form": "factored"}})
    memory = model.memory(1, pixels(1))["injector"]

    def run() -> None:
        with model.nodes["injector"].holding(memory):
            model.decoder(input_ids=ids)

    assert component_costs(model.graph)["injector"].per_token * 6 == counted(run) - alone


def test_an_encoder_that_nothing_reads_costs_nothing() -> None:
    graph = {"grouper": None, "layer_query": None, "projector": None, "fuser": None}
    model = build_on_meta(dehvf_kit.parse_recipe(raw_recipe(graph=graph)))
    assert count_flops(model.graph, model.decoder, model.towers).vision == {}


def test_the_report_adds_up() -> None:
    recipe = dehvf_kit.parse_recipe(raw_recipe())
    model = build_on_meta(recipe)
    report = count_flops(model.graph, model.decoder, model.towers, lengths=(8,))
    sample, decoder = report.samples[0], decoder_flops(model.decoder)
    costs = [cost for name, cost in report.components.items() if name != "vision_adapter"]
    added = sum(cost.per_step + cost.per_image + 8 * cost.per_token for cost in costs)
    assert sample.text == decoder.forward(8)
    assert sample.memory == sample.text + added
    assert sample.prepended == decoder.forward(8 + PATCHES, logits=8)
    assert decoder.attention_width == LAYERS * HIDDEN
