"""A recipe's model run on the meta device: the same code as in training, without computing a number.

So every recipe, with components of plugins, can be counted from configs alone. Shapes are those of one batch without
padding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dehvf_kit.backbones.vision.tower import VisionTower
from dehvf_kit.costs.flops import counted_flops
from dehvf_kit.costs.memory import known_dtype
from dehvf_kit.errors import DehvfError
from dehvf_kit.model.attachment import MemoryScope
from dehvf_kit.model.builder import build_on_meta
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.model.run import question
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit_plan.meta_run import LiveBytes, SavedBytes, backward, fused_attention, values_unknown

CACHES = ("past_key_values", "cache_params", "state")
"""Where a decoder's output holds what the pass of the next token takes under the same name."""


@dataclass(frozen=True, kw_only=True)
class TrainCount:
    """FLOPs per training step of one device, forward and backward; saved and peak: bytes, without frozen weights."""

    forward: int
    backward: int
    saved: int
    peak: int


@dataclass(frozen=True, kw_only=True)
class DecodeCount:
    """What answering a batch costs.

    Attributes:
        encoder, graph, prompt, token: FLOPs per batch of the encoders, the components, the prompts, and one more token.
        cache: bytes of the key/value cache per position and sample; 0 in a decoder without one, which reads the whole text again.
        state: bytes per sample of what a cache holds whatever the length (recurrent and convolution states).
        positions: positions that the prompt fills, with the tokens that a component puts into the input.
        memory: bytes per sample of what components store.
        peak: most bytes while the prompts are read.
    """

    encoder: int
    graph: int
    prompt: int
    token: int
    cache: int
    state: int
    positions: int
    memory: int
    peak: int


class WordCounter:
    """Replaces a tokenizer where only the number of tokens matters: one per word and per sign, none before them."""

    pad_token_id, bos_token_id, eos_token_id = 0, None, 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(re.findall(r"\w+|[^\w\s]", text))}


def symbolic_model(recipe: Recipe) -> DehvfModel:
    """The recipe's model on the meta device, weights in the recipe's dtypes. Raises: RecipeError, DehvfError."""
    model = build_on_meta(recipe, SimpleNamespace(tokenizer=WordCounter()))
    model.decoder.to(_dtype(recipe.decoder.dtype, model.decoder))
    _set_attention(model.decoder, recipe.decoder.attn_implementation)
    for name, tower in model.towers.items():
        _set_attention(tower.model, recipe.vision[name].attn_implementation)
        tower.to(_dtype(recipe.vision[name].dtype, tower.model))
        tower.assume_layout()
        tower.post_norm(_image(tower, 1))  # looked up by running the encoder, once
    for node in model.nodes.values():
        node.to("meta")
    if recipe.training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model


def with_checkpointing(recipe: Recipe) -> Recipe:
    """The same recipe that recomputes decoder layers in backward."""
    return replace(recipe, training=recipe.training.model_copy(update={"gradient_checkpointing": True}))


def count_training(recipe: Recipe, batch: int, tokens: int, answer: int) -> TrainCount:
    """Count a step on `batch` samples of `tokens` tokens, `answer` of them learned, each with an image."""
    model, inputs = _training_inputs(recipe, batch, tokens, answer)
    with values_unknown(), counted_flops() as counter:
        loss = model(**inputs).loss
        forward = counter.get_total_flops()
        backward(loss)
    flops = counter.get_total_flops()
    model, inputs = _training_inputs(recipe, batch, tokens, answer)
    saved = SavedBytes(model)
    with values_unknown(), fused_attention(), LiveBytes(_own(model, inputs)) as live:
        with saved:
            loss = model(**inputs).loss
        kept = saved.forget()
        backward(loss)
    return TrainCount(forward=forward, backward=flops - forward, saved=kept, peak=live.peak)


def training_flops(recipe: Recipe, tokens: int, answer: int) -> int:
    """FLOPs per sample, forward and backward."""
    model, inputs = _training_inputs(recipe, 1, tokens, answer)
    with values_unknown(), counted_flops() as counter:
        backward(model(**inputs).loss)
    return counter.get_total_flops()


def count_decoding(recipe: Recipe, batch: int, tokens: int) -> DecodeCount:
    """Count answering `batch` questions of `tokens` tokens, each with an image."""
    from transformers import DynamicCache

    model = symbolic_model(recipe)
    ids = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    given: dict[str, Any] = {}
    encoder = 0
    with torch.no_grad(), values_unknown():
        if model.reads_images:
            with counted_flops() as counter:
                given["vision_features"] = model.vision_features(_pixels(model, batch))
            encoder = counter.get_total_flops()
        with counted_flops() as counter:
            memory = model.memory(batch, **given, prompt=question(model, ids, None, None, None))
        graph, written = counter.get_total_flops(), _tensor_bytes(memory)
        asked = {"attention_mask": torch.ones_like(ids), "use_cache": True, "logits_to_keep": 1, **given}
        with counted_flops() as counter:
            output = model(input_ids=ids, **asked)
        prompt = counter.get_total_flops() - graph
        name, cache = next(((name, output[name]) for name in CACHES if output.get(name) is not None), ("", None))
        if cache is None:  # RecurrentGemma fills one that it is given, and hands out none
            cache = DynamicCache(config=model.decoder.config)
            model(input_ids=ids, past_key_values=cache, **asked)
            name = "past_key_values" if any(_held(cache)) else ""
        growing, state = _held(cache)
        positions = cache.get_seq_length() if growing else tokens
        so_far = torch.ones(batch, positions + 1, dtype=torch.long, device="meta")
        following = {"input_ids": ids[:, :1], name: cache} if name else {"input_ids": torch.zeros_like(so_far)}
        with MemoryScope(model.nodes, memory), counted_flops() as counter:
            model.decoder(attention_mask=so_far, **following)
        token = counter.get_total_flops()
        del output, cache, following
        with fused_attention(), LiveBytes(_own(model, {"ids": ids, **given})) as live:
            model(input_ids=ids, **asked)
    return DecodeCount(
        encoder=encoder,
        graph=graph,
        prompt=prompt,
        token=token,
        cache=growing // (batch * positions),
        state=state // batch,
        positions=positions,
        memory=written // batch,
        peak=live.peak,
    )


def _held(cache: Any) -> tuple[int, int]:
    """Bytes of a cache's keys and values, which grow with the text, and of the states that it holds beside them."""
    growing = state = 0
    parts, seen = [("", cache)], set[int]()
    while parts:
        name, part = parts.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            if name in ("keys", "values"):
                growing += part.nbytes
            elif part.is_floating_point():
                state += part.nbytes
        elif isinstance(part, Mapping):
            parts += [(name, one) for one in part.values()]
        elif isinstance(part, (list, tuple)):
            parts += [(name, one) for one in part]
        elif type(part).__module__.startswith("transformers."):
            parts += vars(part).items()
    return growing, state


def _training_inputs(recipe: Recipe, batch: int, tokens: int, answer: int) -> tuple[DehvfModel, dict[str, Any]]:
    if not 0 < answer < tokens:
        raise DehvfError(f"of {tokens} tokens {answer} cannot be the answer; give 1 to {tokens - 1}")
    model = symbolic_model(recipe).train()
    ids = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    keep = torch.zeros(answer, dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids, "labels": ids, "logits_to_keep": keep, "attention_mask": torch.ones_like(ids)}
    if model.reads_images:
        pixels = _pixels(model, batch)
        if recipe.training.cache_features and not model.image_is_trained:
            with torch.no_grad():
                inputs["vision_features"] = model.vision_features(pixels)
        else:
            inputs["pixel_values"] = pixels
    return model, inputs


def _pixels(model: DehvfModel, batch: int) -> Any:
    images = {name: _image(tower, batch) for name, tower in model.towers.items()}
    return images["vision"] if list(images) == ["vision"] else images


def _image(tower: VisionTower, batch: int) -> Tensor:
    return torch.empty(batch, 3, tower.spec.image_size, tower.spec.image_size, device="meta")


def _own(model: DehvfModel, inputs: Mapping[str, Any]) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    yield from (value for value in inputs.values() if isinstance(value, Tensor))


def _set_attention(tower: Any, name: str | None) -> None:
    """Attention written out where the recipe wants that; every other kind counts as a fused kernel."""
    if name == "eager" and hasattr(tower, "set_attn_implementation"):
        tower.set_attn_implementation(name)


def _dtype(name: str, model: Any) -> torch.dtype:
    return getattr(torch, known_dtype(name, model))


def _tensor_bytes(value: Any) -> int:
    """Bytes of all tensors reachable from a value, each storage once, without parameters."""
    found: dict[int, int] = {}
    seen: set[int] = set()

    def walk(one: Any) -> None:
        if id(one) in seen:
            return
        seen.add(id(one))
        if isinstance(one, torch.nn.Parameter):
            return
        if isinstance(one, Tensor):
            found[one.untyped_storage()._cdata] = one.untyped_storage().nbytes()
        elif isinstance(one, Mapping):
            for inner in one.values():
                walk(inner)
        elif isinstance(one, (list, tuple, set)):
            for inner in one:
                walk(inner)
        elif hasattr(one, "__dict__") and not isinstance(one, (torch.nn.Module, type)) and not callable(one):
            walk(vars(one))

    walk(value)
    return sum(found.values())
