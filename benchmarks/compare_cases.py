"""What is timed for each subject: a training step, a prefill, one decoded token, and the preparation of an image's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from compare_methods import Method
from compare_shapes import Shapes
from compare_timing import Case
from torch import Tensor
from torch.nn import functional as F
from transformers import StaticCache


def training_step(method: Method, batch: int, tokens: int) -> Case:
    """Forward and backward, with a gradient at the embeddings too, so that every subject's backward passes every layer.

    Beside a decoder of half precision all subjects run under autocast, as mixed-precision training does.
    """
    shapes = method.shapes
    mixed = autocast(shapes)
    text, features = shapes.text(batch, tokens).requires_grad_(), shapes.features(batch)
    labels = torch.randint(shapes.vocabulary, (batch * tokens,), device=shapes.device)

    def run() -> None:
        with mixed:
            loss = F.cross_entropy(method.forward(text, features).flatten(0, 1).float(), labels)
        loss.backward()

    def reset() -> None:
        method.train(True)
        _clear([text, *method.trained()])

    return Case(run, reset)


def prefill(method: Method, batch: int, tokens: int) -> Case:
    """A forward pass over the text, the image's preparation included."""
    text, features = method.shapes.text(batch, tokens), method.shapes.features(batch)
    return Case(torch.no_grad()(lambda: method.forward(text, features)), lambda: method.train(False))


def decode(method: Method, batch: int, cached: int) -> Case:
    """One token after `cached` tokens of text, and an image's tokens where the subject has them in its sequence.

    The cache is written in place, at the same column in every repetition: no subject copies its cache, which would cost
    the longer ones more.
    """
    shapes = method.shapes
    length = cached + method.input_tokens
    cache = StaticCache(config=method.decoder.config, max_cache_len=length + 1)
    cache.early_initialization(batch, shapes.heads, shapes.hidden // shapes.heads, shapes.torch_dtype, shapes.device)
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
    text = shapes.text(batch, 1)
    with torch.no_grad():
        held = method.prepare(shapes.features(batch))

    def reset() -> None:
        method.train(False)
        for layer in cache.layers:
            layer.cumulative_length.fill_(length)

    return Case(torch.no_grad()(lambda: method.logits(text, held, cache)), reset)


def preparation(method: Method, batch: int) -> Case:
    """What an image costs before the decoder's first layer: fuser, projector and grouping, forward and backward."""
    features = method.shapes.features(batch)
    method.train(True)
    mixed = autocast(method.shapes)
    with mixed:
        seeds = [torch.ones_like(tensor) for tensor in method.prepared(features)]

    def run() -> None:
        if seeds:
            with mixed:
                prepared = method.prepared(features)
            torch.autograd.backward(prepared, seeds)

    return Case(run, lambda: _clear(list(method.trained())))


MODES: dict[str, Callable[[Method, int, int], Case]] = {"training": training_step, "prefill": prefill, "decode": decode}


def flops(run: Callable[[], Any]) -> int:
    """Counted FLOPs of a call: matrix products and attention, a multiply-add as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def autocast(shapes: Shapes) -> torch.autocast:
    """As in mixed-precision training where the decoder has half precision; without effect for float32."""
    return torch.autocast(shapes.device, shapes.torch_dtype, enabled=shapes.torch_dtype != torch.float32)


def _clear(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tensor.grad = None
