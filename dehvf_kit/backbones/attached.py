"""What a frozen model carries while the kit is attached to it.

Notes on its modules: a second attachment names the first, and a lost handle is found again. Quantised layers that keep their form,
without which no gradient passes through them. Compiled layers: compiled code does not notice a hook that is placed after its first
run, so it is compiled anew, or layers run as they were written.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from dehvf_kit.errors import DecoderError

log = logging.getLogger(__name__)
SETTINGS: dict[str, Any] = {"dynamic": False, "isolate_recompiles": True, "options": {"fallback_random": True}}
"""Of `torch.compile`: static shapes; each layer's code apart, as hooks differ between layers; dropout as in eager code."""
SWITCHES = {"support_avx512bf16_for_cpu": False, "linear_mode": "train"}
"""Attributes of bitsandbytes' and gptqmodel's layers, and the value that keeps them from repacking."""
NOTES = "_dehvf_attached"


class Attachment(Protocol):
    """Something that can be taken off a model again; `attached_as` is how messages call it."""

    @property
    def attached_as(self) -> str: ...

    def detach(self) -> None: ...


class Notes(list[Any]):
    """The attachments of one module. Its deep copy keeps those that were copied with it, not whole models built around it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Notes:
        return Notes(copy.deepcopy(one, memo) for one in self if not isinstance(one, nn.Module))


def note(attachment: Attachment, modules: Iterable[nn.Module]) -> None:
    """Remember an attachment on the modules where it is."""
    for module in modules:
        module.__dict__.setdefault(NOTES, Notes()).append(attachment)


def forget(attachment: Attachment, modules: Iterable[nn.Module]) -> None:
    """The opposite of `note`; a module on which nothing is noted is as it was before."""
    for module in modules:
        kept = Notes(one for one in module.__dict__.pop(NOTES, ()) if one is not attachment)
        if kept:
            module.__dict__[NOTES] = kept


def attached_to(model: nn.Module) -> list[Attachment]:
    """What is attached to a model or to a part of it, first attached first."""
    noted = [one for module in model.modules() for one in module.__dict__.get(NOTES, ())]
    return list({id(one): one for one in noted}.values())


def names(attachments: Iterable[Attachment]) -> str:
    """Attachments as a message lists them, with what to do about them."""
    held = ", ".join(one.attached_as for one in attachments)
    return f"{held}; detach() it, or call dehvf_kit.detach_all(decoder)"


def detach_all(decoder: nn.Module) -> list[str]:
    """Take everything off a decoder or vision encoder that the kit attached to it, also where the handle is lost.

    Args:
        decoder: any model that `attach_memory` or `build` was given, or a part of it.

    Returns:
        What was taken off, as messages call it; empty where nothing was attached.
    """
    found = attached_to(decoder)
    for attachment in reversed(found):
        attachment.detach()
    return [one.attached_as for one in found]


def import_bitsandbytes() -> Any:
    """bitsandbytes, or None where it is missing or broken, imported without asking a hub for a kernel.

    On a CPU with AVX512-BF16 bitsandbytes 0.50 fetches a kernel from the hub as it is imported, where `kernels` is installed,
    and else logs that it failed (`bitsandbytes/backends/cpu/ops.py`). `keep_differentiable` turns that kernel off anyway.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    modules: dict[str, Any] = sys.modules
    kernels, disabled = modules.get("kernels"), log.disabled
    modules["kernels"], log.disabled = None, True
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError):
        return None
    finally:
        log.disabled = disabled
        del modules["kernels"]
        if kernels is not None:
            modules["kernels"] = kernels


def keep_differentiable(model: nn.Module) -> list[nn.Module]:
    """Keep 4-bit layers of bitsandbytes and gptqmodel from repacking their weights, which they do in evaluation on some CPUs.

    The repacked form has no backward, may round the scales, and nothing restores it. Gives the layers, for `release`.
    Raises: DecoderError where that has happened already.
    """
    layers: list[Any] = [module for module in model.modules() if _switch(module)]
    for layer in layers:
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if getattr(layer, "linear_mode", None) == "inference" or getattr(state, "packing_format_for_cpu", False):
            raise DecoderError(
                f"{type(model).__name__}: its library ({type(layer).__module__.partition('.')[0]}) has repacked its 4-bit weights "
                "for inference on this CPU, which leaves them without gradients; load the decoder again and give it to the kit "
                "before its first pass"
            )
    for layer in layers:
        layer._kept_differentiable = getattr(layer, "_kept_differentiable", 0) + 1
        layer.__dict__.setdefault("_repacked_before", getattr(layer, _switch(layer)))
        setattr(layer, _switch(layer), SWITCHES[_switch(layer)])
    return layers


def release(layers: list[nn.Module]) -> None:
    """Undo one `keep_differentiable`; the last one lets the layers repack again."""
    while layers:
        layer: Any = layers.pop()
        layer._kept_differentiable -= 1
        if not layer._kept_differentiable:
            setattr(layer, _switch(layer), layer.__dict__.pop("_repacked_before"))
            del layer._kept_differentiable


def _switch(layer: nn.Module) -> str:
    return next((name for name in SWITCHES if hasattr(layer, name)), "")


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
