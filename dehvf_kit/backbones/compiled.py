"""Hooks and torch.compile: compiled code does not notice a hook that is placed after its first run."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)
SETTINGS: dict[str, Any] = {"dynamic": False, "isolate_recompiles": True, "options": {"fallback_random": True}}
"""Of `torch.compile`: static shapes; each layer's code apart, as hooks differ between layers; dropout as in eager code."""


def forget_compiled() -> None:
    """Have everything compiled so far compiled anew at its next run, with the hooks that are there then."""
    if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
        torch.compiler.reset()


@contextlib.contextmanager
def run_eagerly() -> Iterator[None]:
    """Inside, compiled modules run as they were written, for hooks that stay for one pass."""
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def padded_length(tokens: int, longest: int) -> int:
    """The next of few lengths, four in each octave (8, 10, 12, 14, 16, 20, ...), but no more than `longest`."""
    step = 1 << max(0, (tokens - 1).bit_length() - 3)
    return max(tokens, min(longest, -(-tokens // step) * step))


def not_compilable(decoder: nn.Module) -> str:
    """Why a decoder's layers cannot be compiled, as far as that is known before their first pass; else an empty text."""
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        return f"torch {torch.__version__} cannot keep the compiled code of layers apart (isolate_recompiles)"
    if getattr(decoder, "hf_quantizer", None) or not all(weight.is_floating_point() for weight in decoder.parameters()):
        return "the decoder is quantised"
    if any(hasattr(part, "_hf_hook") for part in decoder.modules()):
        return "accelerate moves the decoder's weights between devices"
    return "the decoder's weights are split over processes" if any(hasattr(w, "to_local") for w in decoder.parameters()) else ""


class CompiledLayers:
    """Decoder layers that run compiled in a training pass, and as they were written in any other.

    Args:
        layers: the layers; one that its owner compiled is left alone.
        training: whether a pass with gradients is one of training.

    Where compiling fails (no C++ compiler, an operation that torch cannot compile), a warning says so and all layers run as
    they were written.
    """

    def __init__(self, layers: Sequence[nn.Module], training: Callable[[], bool]) -> None:
        self.training = training
        self.layers = [layer for layer in layers if layer._compiled_call_impl is None]
        for layer in self.layers:
            layer._compiled_call_impl = self._call_of(layer)

    def remove(self) -> None:
        """Give the layers their own call back."""
        while self.layers:
            self.layers.pop()._compiled_call_impl = None

    def _call_of(self, layer: nn.Module) -> Callable[..., Any]:
        plain: Callable[..., Any] = layer._call_impl
        compiled = torch.compile(plain, **SETTINGS)

        def call(*args: Any, **kwargs: Any) -> Any:
            trains = torch.is_grad_enabled() and self.training() and kwargs.get("past_key_values") is None
            if torch.compiler.is_compiling() or not trains:
                return plain(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.remove()
                first = str(error).strip().splitlines()[0]
                log.warning("training.compile: %s: the decoder's layers run as they were written", first)
                return plain(*args, **kwargs)

        return call
