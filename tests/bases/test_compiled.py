"""Decoders and encoders that were compiled and run before memory is attached: logits are those of the eager model.

The eager backend, so that only what is traced is tested: differences are 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import pixels, tiny_decoder, tiny_model, tiny_vision, tokens, worst
from torch import Tensor, nn
from transformers import CompileConfig

import dehvf_kit

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("builtins_alone")]


def by_layer(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


WAYS = {"torch.compile": lambda model: torch.compile(model, backend="eager"), "compile()": in_place, "by layer": by_layer}


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def small() -> nn.Module:
    """As a DehvfModel leaves its decoder, so that no other guard than the hooks has it compiled anew."""
    return tiny_decoder(num_hidden_layers=2).requires_grad_(False)


def table(seed: int) -> list[Tensor]:
    return [torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(seed)) for _ in range(2)]


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_memory_on_a_decoder_that_was_compiled_and_run(way: str) -> None:
    ids, decoder, eager = tokens(), WAYS[way](small()), small()
    plain = decoder(input_ids=ids).logits
    for seed in (1, 2):
        handles = [dehvf_kit.attach_memory(model, table(seed), table(seed)) for model in (decoder, eager)]
        assert worst(decoder(input_ids=ids).logits, eager(input_ids=ids).logits) == 0
        assert worst(decoder(input_ids=ids).logits, plain) > 0.1
        for handle in handles:
            handle.detach()
        assert worst(decoder(input_ids=ids).logits, plain) == 0


def built(decoder: nn.Module, vision: nn.Module | None = None, slots: int = 20) -> Any:
    return tiny_model(decoder, vision, graph={"position": {"num_slots": slots}})


def answer(model: Any, **settings: Any) -> list[Tensor]:
    """Logits of each new token."""
    ids = tokens()
    fixed = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    mask = torch.ones_like(ids)
    return model.generate(input_ids=ids, pixel_values=pixels(), attention_mask=mask, **fixed, **settings).logits


def test_every_token_of_a_static_cache_sees_memory_also_of_a_second_adapter() -> None:
    config = CompileConfig(backend="eager", fullgraph=False, mode=None)
    config._compile_all_devices = True  # as on CUDA, where `generate` compiles by itself
    static: dict[str, Any] = {"cache_implementation": "static", "compile_config": config}
    decoder = small().eval()
    decoder.generate(input_ids=tokens(), max_new_tokens=3, do_sample=False, attention_mask=torch.ones_like(tokens()), **static)
    assert hasattr(decoder, "_compiled_call"), "transformers did not compile"
    for slots in (20, 24):
        model = built(decoder, slots=slots)
        for found, wanted in zip(answer(model, **static), answer(built(small(), slots=slots)), strict=True):
            assert worst(found, wanted) < 1e-5, "a static cache adds up in another order"
        model.detach()


@torch.no_grad()
def test_a_model_whose_towers_were_compiled_and_run() -> None:
    decoder, vision = in_place(small()), in_place(tiny_vision())
    decoder(input_ids=tokens())
    vision(pixels())
    model, eager = built(decoder, vision), built(small())
    for seed in (3, 8):
        given: dict[str, Any] = {"input_ids": tokens(), "pixel_values": pixels(seed=seed)}
        assert worst(model(**given).logits, eager(**given).logits) == 0
    with model.hooks_disabled():
        assert worst(decoder(input_ids=tokens()).logits, small()(input_ids=tokens()).logits) == 0


@torch.no_grad()
def test_a_compiled_model() -> None:
    """As the Trainer's `torch_compile` does."""
    model = built(small())
    given, other = ({"input_ids": tokens(), "vision_features": model.vision_features(pixels(seed=seed))} for seed in (3, 8))
    expected = [model(**one).logits for one in (given, other)]
    compiled = torch.compile(model, backend="eager")
    assert worst(compiled(**given).logits, expected[0]) < 1e-6
    with model.hooks_disabled():
        pass
    assert worst(compiled(**other).logits, expected[1]) < 1e-6


def test_a_whole_model_compiles_into_one_graph() -> None:
    """Encoder, graph and decoder, with a loss: without a graph break, also for other images and another batch."""
    plain, model = (tiny_model(graph={"vision_adapter": None}) for _ in range(2))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for rows in (3, 2):
        given = {"input_ids": tokens(rows), "pixel_values": pixels(rows, seed=rows), "labels": tokens(rows)}
        if rows == 2:
            given["logits_to_keep"] = torch.tensor([[0, 2], [1, -1]])  # as a batch of training has it
        output, expected = compiled(**given), plain(**given)
        assert worst(output.logits, expected.logits) < 1e-6  # the same operations, in the order that autograd's trace gives
        output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.nodes.parameters())
