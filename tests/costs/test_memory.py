"""Counted bytes equal what tensors hold."""

from __future__ import annotations

import torch
from helpers import LAYERS, PATCHES, pixels, raw_recipe, tiny_model, tokens

import dehvf_kit
from dehvf_kit.costs.memory import MemoryUsage, known_dtype, memory_usage
from dehvf_kit.model.builder import build_on_meta
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.ops.ffn_memory import build_keys_values
from dehvf_kit.utils.units import ratio, si


def report_of(model: DehvfModel, decoder_dtype: str = "float32") -> MemoryUsage:
    vision = dict.fromkeys(model.towers, "float32")
    return memory_usage(model.graph, model.decoder, model.towers, decoder_dtype, vision)


def test_a_pictures_memory_holds_the_counted_bytes() -> None:
    model = tiny_model()
    report = report_of(model)
    memory = model.memory(1, pixels(1))["injector"]
    layers = [memory.layer(index, torch.zeros(1, 1, 1)) for index in range(LAYERS)]
    codes = {id(code): code for layer in layers for code in (layer.key_codes, layer.value_codes)}
    assert report.factored_per_image == sum(code.nbytes for code in codes.values())
    layers = [memory.layer(layer, pixels(1)[0]) for layer in range(LAYERS)]
    assert report.built_per_image == sum(table.nbytes for layer in layers for table in build_keys_values(layer))


def test_half_precision_halves_it() -> None:
    model = tiny_model()
    whole, half = report_of(model), report_of(model, "bfloat16")
    assert half.factored_per_image * 2 == whole.factored_per_image
    assert half.decoder * 2 == whole.decoder
    assert half.adapter == whole.adapter


def test_training_state_is_three_times_the_adapter() -> None:
    model = tiny_model()
    report = report_of(model)
    assert report.adapter == sum(parameter.nbytes for parameter in model.named_trainable_parameters().values())
    assert report.gradients_and_optimiser == 3 * report.adapter


def test_patches_as_tokens_hold_the_cache_transformers_makes() -> None:
    model = tiny_model()
    cache = model.decoder(input_ids=tokens(1, PATCHES), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert report_of(model).prepended_cache_per_image == held


def test_without_pictures_no_picture_is_held() -> None:
    graph = {"grouper": None, "layer_query": None, "projector": None, "fuser": None}
    model = build_on_meta(dehvf_kit.parse_recipe(raw_recipe(graph=graph)))
    report = report_of(model)
    assert (report.factored_per_image, report.built_per_image) == (0, 0)


def test_auto_is_the_dtype_the_config_names() -> None:
    model = tiny_model()
    assert known_dtype("auto", model.decoder) == "float32"
    assert known_dtype("float16", model.decoder) == "float16"


def test_figures_have_three_digits() -> None:
    assert [si(value, "B") for value in (0, 999, 1000, 12_345, 168_000_000, 13.5e9)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "12.3 kB",
        "168 MB",
        "13.5 GB",
    ]
    assert (ratio(3, 2), ratio(1, 0)) == ("1.50 x", "-")
