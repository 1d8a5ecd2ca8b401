"""Where numbers stop being finite: a second forward of a batch, with every module's output looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, batch: Mapping[str, Any], run: Callable[[dict[str, Any]], Any]) -> str | None:
    """What is not finite first: a tensor of the batch, a trained weight, or the first module to return such an output.

    run: runs the model on the batch. Random states stay as they are. None where everything is finite.
    """
    for key, value in batch.items():
        if not all_finite(value):
            return f"the batch's own {key}"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not all_finite(parameter.detach()):
            return f"the weights '{name.removeprefix('nodes.')}'"
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all_finite(output):
                found.append(f"the output of '{name.removeprefix('nodes.')}'" if name else "the model's output")

        return hook

    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            run(dict(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def all_finite(value: Any) -> bool:
    """Whether every floating number in a tensor, or in nested tuples, lists, mappings and objects of tensors, is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value) if tensor.is_floating_point())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name, None))
