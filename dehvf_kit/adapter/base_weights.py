"""The record of a base model's weights: a digest of every tensor, so that any single changed weight shows.

A line for each tensor, by its name: `bfloat16=0d1e2f3a4b5c6d7e values=0.1,0.2,0.3,0.4`, or `skipped: Packed` where its storage
cannot be read. A tensor is digested as it is stored and, where that is a wider dtype, also as rounded to narrower ones;
rounding is repeatable, so that a base loaded in another dtype is compared to the last bit too. Only between float16 and
bfloat16, neither of which holds the other, a few values of each tensor are compared with a tolerance.

A quantised tensor is digested as its library dequantises it, and the tensor of its name in the checkpoint that the model was
loaded from beside it: `Params4bit_0d1e2f3a=... float32=... values=0.1,0.2,0.3,0.4 within=0.02`. Where two records share neither,
a few values are compared within the error of quantisation, which can tell another base, and not the same one.

A checkpoint whose files did not change is digested once, not by every command: its record is kept on disk as
$DEHVF_KIT_CACHE/bases / <sha256 of what it depends on>.json, which is every file of the checkpoint (path, size, times, inode), the
class, names, shapes and dtypes of the loaded model, and the versions of the kit and of the libraries that load it. Only a model
that comes straight from its files may be looked up there: what was done to one in memory shows in its weights alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dehvf_kit._version import __version__
from dehvf_kit.adapter.base_tensors import bits, dtype_name, held, loaded, named_places, quantisation, readable
from dehvf_kit.utils import atomic

KEPT_FORMAT = 1
STARTED = time.time_ns()
"""Files that changed later may have changed after the model was loaded."""

NARROWER = {"float64": ("float32", "bfloat16", "float16"), "float32": ("bfloat16", "float16"), "bfloat16": (), "float16": ()}
"""What each dtype may be rounded to; other dtypes are compared with themselves alone."""
HALF_TOLERANCE = 2 * 2.0**-8
"""Relative, between float16 and bfloat16: twice half a unit in the last place of the coarser."""
QUANTISED = {"8": 1 / 16, "4": 1 / 5, "": 1 / 3}
"""Error of a quantised weight relative to the largest of its tensor, at most, by a digit in its class's name.

8 bits: half a unit in the last place of float8 e4m3, int8 errs less. 4 bits: FP4's widest gap, from 2/3 to 1, is halved to 1/6, and
scales are rounded too.
"""
CHUNK = 1 << 22
"""Values that are rounded or brought to the CPU at once."""
THREADS, PROBED_VALUES, DIGITS = 4, 4, 16
SKIPPED, RANDOM = "skipped: ", "random"
"""`skipped: random`: a weight that the checkpoint lacks and no feature depends on, such as a pooler's."""
_NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]?\d{1,3})?"
LINE = re.compile(rf"(?:\w+=[0-9a-f]{{16}} )+values=(?:{_NUMBER}(?:,{_NUMBER})*)?(?: within={_NUMBER})?|skipped: \w+")


@dataclass(frozen=True)
class Difference:
    """What comparing a record with a model found: names of tensors, and how many could not be compared."""

    missing: list[str]
    other: list[str]
    compared: int
    uncompared: int


def record(model: nn.Module) -> dict[str, str] | None:
    """The record of a model; None where all its weights are on the meta device.

    Reads every weight once. Of a model that is sharded over processes, each of them must call this.
    """
    places, checkpoint = named_places(model), functools.cache(checkpoint_files)
    owners: dict[nn.Module, list[str]] = {}
    for name, (module, _) in places.items():
        owners.setdefault(module, []).append(name)

    def lines(module: nn.Module) -> dict[str, str]:
        with loaded(module):
            return {name: _line(model, name, *places[name], checkpoint) for name in owners[module]}

    sharded = {module for module, key in places.values() if isinstance(held(module, key), DTensor)}
    found: dict[str, str] = {}
    for module in (one for one in owners if one in sharded):  # gathered one by one, in the same order in every process
        found |= lines(module)
    with ThreadPoolExecutor(THREADS) as pool:
        for some in pool.map(lines, [one for one in owners if one not in sharded]):
            found |= some
    if all(line == f"{SKIPPED}meta" for line in found.values()):
        return None
    return {name: found[name] for name in places}


def is_record(found: object) -> bool:
    """Whether a record from a file is well formed."""
    return isinstance(found, Mapping) and all(isinstance(line, str) and LINE.fullmatch(line) for line in found.values())


def compare(then: Mapping[str, str], now: Mapping[str, str]) -> Difference:
    """Compare two records."""
    # A quantised layer holds other tensors than a plain one.
    packed = {_module(name) for one in (then, now) for name, line in one.items() if not line.startswith(tuple(NARROWER))}
    without = f"{SKIPPED}{RANDOM}"
    names = [name for name in dict.fromkeys([*then, *now]) if without not in (then.get(name), now.get(name))]
    # Tied weights have two names where they are offloaded, and one elsewhere.
    tied = {name for one, other in ((then, now), (now, then)) for name in one if name not in other and _has_twin(name, one, other)}
    names = [name for name in names if name not in tied]
    # Beside a quantised weight stand its scales.
    names = [name for name in names if name in then and name in now or not _is_scale(name, packed, then, now)]
    same = {name: _same(then[name], now[name]) for name in names if name in then and name in now}
    missing = [name for name in names if name not in now and _module(name) not in packed]
    compared = sum(verdict is not None for verdict in same.values())
    return Difference(
        missing=missing,
        other=[name for name, verdict in same.items() if verdict is False],
        compared=compared,
        uncompared=len(names) - compared - len(missing),
    )


def all_names(model: nn.Module) -> dict[str, Tensor | nn.Module]:
    """The weights of a model by the names that a record uses; a module where one keeps its weight packed."""
    return {name: held(module, key) for name, (module, key) in named_places(model).items()}


def _has_twin(name: str, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether another tensor, which is in both records, has the same line."""
    return any(line == one[name] for twin, line in one.items() if twin != name and twin in other)


def _is_scale(name: str, packed: set[str], *records: Mapping[str, str]) -> bool:
    """Whether a tensor belongs to the quantisation of a weight that is in all records."""
    module, _, leaf = name.rpartition(".")
    return module in packed and leaf != "bias" and all(f"{module}.weight" in one for one in records)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _line(model: nn.Module, name: str, module: nn.Module, key: str, files: Callable[[nn.Module], dict[str, Path]]) -> str:
    if name in getattr(model, "unloaded_weights", ()):
        return f"{SKIPPED}{RANDOM}"
    found = held(module, key)
    tensor = readable(module, found)
    if tensor is None:
        return f"{SKIPPED}{'meta' if getattr(found, 'is_meta', True) else type(found).__name__}"
    if type(found) in (Tensor, nn.Parameter) or isinstance(found, DTensor):
        return f"{_digests(tensor)} values={_shown(_values(tensor))}"
    kind = f"{type(found).__name__}{bits(found) if found is module else ''}"
    settings = hashlib.sha256(quantisation(model, found).encode()).hexdigest()[:8]
    error = next(part for digit, part in QUANTISED.items() if digit in kind) * tensor.abs().max().item()
    before, values = stored(files(model).get(name), name), _values(tensor)
    whole = before is not None and before.shape == tensor.shape and dtype_name(before.dtype) in NARROWER
    exact = f" {_digests(before)}" if whole and _near(_values(before), values, error) else ""
    own = _digest(tensor, dtype_name(tensor.dtype))
    return f"{kind}_{settings}={own}{exact} values={_shown(values)} within={error:.7g}"


def _digests(tensor: Tensor) -> str:
    own = dtype_name(tensor.dtype)
    return " ".join(f"{name}={_digest(tensor, name)}" for name in (own, *NARROWER.get(own, ())))


def _digest(tensor: Tensor, dtype: str) -> str:
    """Of a tensor's shape and of its values rounded to a dtype, in pieces, so that no copy of the whole is made."""
    digest = hashlib.sha256(f"{dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        piece = flat[start : start + CHUNK].to(getattr(torch, dtype)).cpu()
        digest.update(memoryview(piece.view(torch.uint8).numpy()))
    return digest.hexdigest()[:DIGITS]


def _shown(values: list[float]) -> str:
    return ",".join(f"{value:.7g}" for value in values)


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
    (before, values_then, error_then), (after, values_now, error_now) = _parts(then), _parts(now)
    quantised = [name for name in before if name in after and not _is_dtype(name)]
    if any(before[name] == after[name] for name in quantised):
        return True
    own_then, own_now = (next(filter(_is_dtype, one), "") for one in (before, after))
    for own in (own_now, own_then):
        if own in before and own in after:
            return before[own] == after[own]
    if quantised:
        return False
    if error_then or error_now:
        return None if _near(values_then, values_now, error_then + error_now) else False
    if {own_then, own_now} != {"float16", "bfloat16"} or not values_then or len(values_then) != len(values_now):
        return None
    pairs = zip(values_then, values_now, strict=True)
    return all(abs(one - other) <= HALF_TOLERANCE * max(abs(one), 2.0**-14) for one, other in pairs)


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)


def _near(then: list[float], now: list[float], error: float) -> bool:
    """Whether values are the same but for an error of quantisation; also where there are none."""
    return len(then) != len(now) or all(abs(one - other) <= error for one, other in zip(then, now, strict=True))


def _parts(line: str) -> tuple[dict[str, str], list[float], float]:
    """A line's digests by name, the tensor's own first, its values, and the error that they may have."""
    facts = dict(entry.split("=") for entry in line.split())
    values, error = facts.pop("values"), facts.pop("within", "0")
    return facts, [float(one) for one in values.split(",") if one], float(error)


def kept_record(model: nn.Module) -> dict[str, str] | None:
    """`record` of a model that was just loaded: from the cache where its files are known, else read and kept there."""
    key = _key(model)
    if key is None:
        return record(model)
    file = atomic.cache_folder() / "bases" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, RecursionError):
        kept: Any = json.loads(file.read_text(encoding="utf-8"))
        if is_record(kept) and kept:
            return dict(kept)
    made = record(model)
    if made is not None:
        with contextlib.suppress(OSError):  # a cache that cannot be written keeps nothing
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(file, json.dumps(made))
    return made


def _key(model: nn.Module) -> str | None:
    """The name of a model's record; None where its files are not known, where some weights are trained (they are not the
    files'), and where it is split over processes that must read together.
    """
    place = checkpoint_folder(model)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if place is None or any(isinstance(tensor, DTensor) or tensor.requires_grad for _, tensor in tensors):
        return None
    try:
        stats = [(str(file.resolve()), file.stat()) for file in sorted(place.iterdir()) if file.is_file()]
    except OSError:
        return None
    if not any(path.endswith((".safetensors", ".bin")) for path, _ in stats) or any(one.st_ctime_ns >= STARTED for _, one in stats):
        return None
    decides = {
        "format": KEPT_FORMAT,
        "versions": [__version__, torch.__version__, transformers.__version__],
        "files": [(path, one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for path, one in stats],
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "tensors": [(name, type(tensor).__name__, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors],
        "unloaded": sorted(getattr(model, "unloaded_weights", ())),
        "quantization": str(getattr(model.config, "quantization_config", None)),
    }
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]


def checkpoint_folder(model: nn.Module) -> Path | None:
    """The folder, or the one in the hub's cache, that a model was loaded from; None where that is not known or gone."""
    config = getattr(model, "config", None)
    place = getattr(config, "_name_or_path", None)
    if not isinstance(place, str) or not place:
        return None
    if not os.path.isdir(place) and place.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(place, "config.json", revision=getattr(config, "_commit_hash", None))
        place = str(Path(cached).parent) if isinstance(cached, str) else place
    return Path(place) if os.path.isdir(place) else None


def checkpoint_files(model: nn.Module) -> dict[str, Path]:
    """The file of each tensor in the checkpoint that a model was loaded from."""
    place = checkpoint_folder(model)
    found: dict[str, Path] = {}
    for file in sorted(place.glob("model*.safetensors")) if place is not None else ():
        with contextlib.suppress(OSError, SafetensorError), safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def stored(file: Path | None, name: str) -> Any:
    """A tensor of a checkpoint's file; None where there is no file."""
    if file is None:
        return None
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)
