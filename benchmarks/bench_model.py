"""The whole model against its decoder alone, at sizes between a test's and a real one's: training step, prefill, decode, generate.

`compare.py` does this at LLaMA-7B shapes, interleaved; here regressions show in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

import dehvf_kit

HIDDEN, LAYERS, VOCABULARY, PATCHES = 512, 4, 1000, 256
VISION = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4}
GEOMETRY = {"image_size": 224, "patch_size": 14}
LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": 1376,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "vocab_size": VOCABULARY,
}
RECIPE = {
    "name": "bench",
    "vision": {"config": {"model_type": "clip_vision_model", **VISION, **GEOMETRY}, "image": {"size": 224}},
    "decoder": {"config": {"model_type": "llama", **LLAMA}},
    "graph": {
        "grouper": {"type": "contiguous", "num_groups": 4},
        "layer_query": {"type": "embedding_mlp"},
        "projector": {"type": "bottleneck_mlp", "bottleneck_size": 32},
        "fuser": {"type": "cross_attention"},
        "position": {"type": "learned", "num_slots": 320},
        "injector": {"type": "ffn_memory"},
    },
}
SUBJECTS = pytest.mark.parametrize("sees", [False, True], ids=["text", "image"])


def build(encoder: CLIPVisionModel | None = None) -> dehvf_kit.DehvfModel:
    """The model on a small LLaMA; without an encoder given, one that holds no memory stands in, for features that are given."""
    torch.manual_seed(0)
    if encoder is None:
        with torch.device("meta"):
            encoder = CLIPVisionModel(CLIPVisionConfig(**VISION, **GEOMETRY))
    return dehvf_kit.build(dehvf_kit.parse_recipe(RECIPE), decoder=LlamaForCausalLM(LlamaConfig(**LLAMA)), vision=encoder)


@pytest.fixture(scope="module")
def model() -> dehvf_kit.DehvfModel:
    return build()


def inputs(model: dehvf_kit.DehvfModel, batch: int, tokens: int, sees: bool) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The callable and its arguments: the model with an image, or its decoder with the text alone."""
    text = {"input_ids": torch.randint(3, VOCABULARY, (batch, tokens))}
    if not sees:
        return model.decoder, text
    return model, {**text, "vision_features": torch.randn(batch, 8, 1 + PATCHES, VISION["hidden_size"])}


@SUBJECTS
def test_training_step(benchmark: BenchmarkFixture, model: dehvf_kit.DehvfModel, sees: bool) -> None:
    benchmark.group = "training step, batch 4, 64 tokens"
    run, given = inputs(model, 4, 64, sees)
    embeds = model.get_input_embeddings()(given.pop("input_ids")).requires_grad_()
    labels = torch.randint(VOCABULARY, embeds.shape[:2])
    model.train()

    def step() -> None:
        run(inputs_embeds=embeds, labels=labels, use_cache=False, **given).loss.backward()
        model.zero_grad()

    benchmark(step)
    model.eval()


@SUBJECTS
def test_prefill(benchmark: BenchmarkFixture, model: dehvf_kit.DehvfModel, sees: bool) -> None:
    benchmark.group = "prefill, batch 8, 64 tokens"
    run, given = inputs(model, 8, 64, sees)
    with torch.no_grad():
        benchmark(lambda: run(**given, use_cache=True))


@SUBJECTS
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_decode(benchmark: BenchmarkFixture, model: dehvf_kit.DehvfModel, batch: int, sees: bool) -> None:
    """One token; the cache is cropped to its 64 tokens between rounds."""
    benchmark.group = f"decode, batch {batch}, 64 tokens before"
    _, given = inputs(model, batch, 64, sees)
    token = torch.randint(3, VOCABULARY, (batch, 1))
    with torch.no_grad():
        held = model.memory(batch, vision_features=given["vision_features"])["injector"] if sees else None
        with model.nodes["injector"].holding(held):
            cache = model.decoder(input_ids=given["input_ids"], use_cache=True).past_key_values

            def step() -> None:
                model.decoder(input_ids=token, past_key_values=cache)

            benchmark.pedantic(step, setup=lambda: shorten(cache, 64), rounds=30, warmup_rounds=3)


def shorten(cache: Any, length: int) -> None:
    """Take the tokens after `length` out of a dynamic cache."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


@SUBJECTS
def test_generate(benchmark: BenchmarkFixture, model: dehvf_kit.DehvfModel, sees: bool) -> None:
    benchmark.group = "generate 16 tokens after 32, batch 4"
    run, given = inputs(model, 4, 32, sees)
    settings = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    benchmark.pedantic(lambda: run.generate(**given, **settings), rounds=5, warmup_rounds=1)


def test_build(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "build a model from a recipe, base models random"
    benchmark.pedantic(build, rounds=5, warmup_rounds=1)
