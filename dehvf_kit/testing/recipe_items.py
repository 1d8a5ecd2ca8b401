"""The item of the decoder contract about a whole recipe: built on a decoder, counted, saved, and loaded."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from dehvf_kit.adapter.checkpoint import load
from dehvf_kit.backbones.decoder import decoder_spec
from dehvf_kit.costs.flops import count_flops
from dehvf_kit.costs.memory import memory_usage
from dehvf_kit.model.builder import build
from dehvf_kit.recipe.recipe import Recipe, parse_recipe
from dehvf_kit.testing.subject import BATCH, distance, logits, require
from dehvf_kit.testing.vision_models import GRID, PATCH, tiny_vision, tiny_vision_config

VISION = "vit"
IMAGE = PATCH * GRID
GRAPH = {
    "grouper": {"type": "contiguous", "num_groups": 1},
    "projector": {"type": "linear"},
    "fuser": {"type": "mean"},
    "position": {"type": "learned", "num_slots": GRID * GRID, "key_std": 1.0},
    "injector": {"type": "ffn_memory", "visual_scale": 1.0, "output_scale": 0.5},
}


def recipe_on(decoder: dict[str, Any]) -> Recipe:
    """The smallest recipe on a tiny encoder and a decoder, as recipes describe one."""
    vision = {"config": tiny_vision_config(VISION).to_dict(), "image": {"size": IMAGE}}
    return parse_recipe({"name": "contract", "vision": vision, "decoder": decoder, "graph": GRAPH})


@torch.no_grad()
def built_counted_saved_and_loaded(subject: Any) -> None:
    """A recipe builds on the decoder and is counted; its saved adapter gives the same logits on a fresh copy."""
    recipe, vision = recipe_on({"model": "handed over"}), tiny_vision(VISION)
    model = build(recipe, decoder=subject.build(), vision=vision)
    plain = logits(subject.model, subject.input_ids)
    torch.manual_seed(11)
    for parameter in model.trainable_parameters():
        parameter.normal_(std=0.3)
    pixels = torch.randn(BATCH, 3, IMAGE, IMAGE)
    expected = logits(model, subject.input_ids, pixel_values=pixels)
    require(distance(expected, plain) > 0, "a recipe's memory changes no logits")
    towers: Any = model.towers
    with model.hooks_disabled():
        held = memory_usage(model.graph, model.decoder, towers, "auto", {"vision": "auto"})
        flops = count_flops(model.graph, model.decoder, towers)
    counted = sum(parameter.numel() * parameter.element_size() for parameter in model.decoder.parameters())
    require(held.decoder == counted, f"{held.decoder} bytes of the decoder are counted, it has {counted}")
    require(flops.samples[0].memory > flops.samples[0].text > 0, "the memory is not counted")
    require(decoder_spec(model.decoder).vocab_size > 0, "the vocabulary's size is not read")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = load(folder, decoder=subject.build(), vision=tiny_vision(VISION))
    require(torch.equal(logits(again, subject.input_ids, pixel_values=pixels), expected), "loaded, it computes other logits")
