"""The record of a base model's weights: a digest of every tensor, so that any single changed weight shows.

A line for each tensor, by its name: `bfloat16=0d1e2f3a4b5c6d7e values=0.1,0.2,0.3,0.4`, or `skipped: Params4bit` where its storage
cannot be compared. A tensor is digested as it is stored and, where that is a wider dtype, also as rounded to narrower ones;
rounding is repeatable, so that a base loaded in another dtype is compared to the last bit too. Only between float16 and
bfloat16, neither of which holds the other, a few values of each tensor are compared with a tolerance.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NARROWER = {"float64": ("float32", "bfloat16", "float16"), "float32": ("bfloat16", "float16"), "bfloat16": (), "float16": ()}
"""What each dtype may be rounded to; other dtypes are compared with themselves alone."""
PACKED = ("int8", "uint8", "int16", "int32")
"""Dtypes in which quantised weights are stored, several in a number."""
HALF_TOLERANCE = 2 * 2.0**-8
"""Relative, between float16 and bfloat16: twice half a unit in the last place of the coarser."""
CHUNK = 1 << 22
"""Values that are rounded or brought to the CPU at once."""
THREADS, PROBED_VALUES, DIGITS = 4, 4, 16
SKIPPED, RANDOM = "skipped: ", "random"
"""`skipped: random`: a weight that the checkpoint lacks and no feature depends on, such as a pooler's."""
WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|base_layer|original_module)(?=\.)")
"""Modules that torch.compile and peft put into names."""
_NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]?\d{1,3})?"
LINE = re.compile(rf"(?:\w+=[0-9a-f]{{16}} )+values=(?:{_NUMBER}(?:,{_NUMBER})*)?|skipped: \w+")


@dataclass(frozen=True)
class Difference:
    """What comparing a record with a model found: names of tensors, and how many could not be compared."""

    missing: list[str]
    other: list[str]
    compared: int
    uncompared: int


def record(model: nn.Module) -> dict[str, str] | None:
    """The record of a model; None where all its weights are on the meta device. Reads every weight once."""
    held = dict(_tensors(model))
    if all(tensor.device.type == "meta" for tensor in held.values()):
        return None
    unloaded = getattr(model, "unloaded_weights", ())
    with ThreadPoolExecutor(THREADS) as pool:
        lines = pool.map(lambda name: f"{SKIPPED}{RANDOM}" if name in unloaded else _line(held[name]), held)
        return dict(zip(held, lines, strict=True))


def is_record(found: object) -> bool:
    """Whether a record from a file is well formed."""
    return isinstance(found, Mapping) and all(isinstance(line, str) and LINE.fullmatch(line) for line in found.values())


def compare(then: Mapping[str, str], now: Mapping[str, str]) -> Difference:
    """Compare two records."""
    # A quantised layer holds other tensors than a plain one.
    packed = {_module(name) for one in (then, now) for name, line in one.items() if line.startswith((SKIPPED, *PACKED))}
    without = f"{SKIPPED}{RANDOM}"
    names = [name for name in dict.fromkeys([*then, *now]) if without not in (then.get(name), now.get(name))]
    same = {name: _same(then[name], now[name]) for name in names if name in then and name in now}
    missing = [name for name in names if name not in now and _module(name) not in packed]
    compared = sum(verdict is not None for verdict in same.values())
    return Difference(
        missing=missing,
        other=[name for name, verdict in same.items() if verdict is False],
        compared=compared,
        uncompared=len(names) - compared - len(missing),
    )


def all_names(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model by the names that a record uses."""
    return dict(_tensors(model))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers that are saved and hold fractions; not those that are computed anew (RoPE)."""
    for name, parameter in model.named_parameters():
        yield _plain(name), parameter
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            kept = name not in module._non_persistent_buffers_set and name != "inv_freq"
            if kept and (buffer.is_floating_point() or _name(buffer.dtype) in PACKED):
                yield _plain(f"{path}.{name}" if path else name), buffer


def _plain(name: str) -> str:
    """A tensor's name without what wrappers add to it."""
    return WRAPPERS.sub("", name).removeprefix(".").removeprefix("base_model.model.")


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _why_not(tensor: Tensor) -> str:
    """Why a tensor's bytes cannot be compared: its device, its class or its dtype; empty where they can."""
    if tensor.device.type == "meta":
        return "meta"
    if type(tensor) not in (Tensor, nn.Parameter):
        return type(tensor).__name__
    return _name(tensor.dtype) if tensor.is_complex() else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _line(tensor: Tensor) -> str:
    reason = _why_not(tensor)
    if reason:
        return f"{SKIPPED}{reason}"
    own = _name(tensor.dtype)
    digests = [f"{name}={_digest(tensor, name)}" for name in (own, *NARROWER.get(own, ()))]
    return f"{' '.join(digests)} values={','.join(f'{value:.7g}' for value in _values(tensor))}"


def _digest(tensor: Tensor, dtype: str) -> str:
    """Of a tensor's shape and of its values rounded to a dtype, in pieces, so that no copy of the whole is made."""
    digest = hashlib.sha256(f"{dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        piece = flat[start : start + CHUNK].to(getattr(torch, dtype)).cpu()
        digest.update(memoryview(piece.view(torch.uint8).numpy()))
    return digest.hexdigest()[:DIGITS]


def _values(tensor: Tensor) -> list[float]:
    """A few values of a tensor of fractions, evenly spaced; none where one is not finite."""
    flat = tensor.detach().reshape(-1)
    if not flat.numel() or not tensor.is_floating_point():
        return []
    places = [place * (flat.numel() - 1) // (PROBED_VALUES - 1) for place in range(PROBED_VALUES)]
    found = [flat[place].item() for place in places]
    return found if all(map(math.isfinite, found)) else []


def _same(then: str, now: str) -> bool | None:
    """Whether two lines are of the same tensor; None where that cannot be told."""
    if then.startswith(SKIPPED) or now.startswith(SKIPPED):
        return None
    (before, values_then), (after, values_now) = _parts(then), _parts(now)
    own_then, own_now = next(iter(before)), next(iter(after))
    if own_now in before:
        return before[own_now] == after[own_now]
    if own_then in after:
        return before[own_then] == after[own_then]
    if {own_then, own_now} != {"float16", "bfloat16"} or not values_then or len(values_then) != len(values_now):
        return None
    pairs = zip(values_then, values_now, strict=True)
    return all(abs(one - other) <= HALF_TOLERANCE * max(abs(one), 2.0**-14) for one, other in pairs)


def _parts(line: str) -> tuple[dict[str, str], list[float]]:
    """A line's digests by dtype, the tensor's own first, and its values."""
    *digests, values = line.split()
    return dict(entry.split("=") for entry in digests), [float(one) for one in values[len("values=") :].split(",") if one]
