"""The tensors of a base model, whole and by their own names, however they are held.

Offloaded tensors are fetched, sharded ones gathered, quantised ones dequantised by their own library; the names are those of the
model without what torch.compile and peft put into them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

PACKED = ("int8", "uint8", "int16", "int32")
"""Dtypes in which quantised weights are stored, several in a number."""
WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|(?:token_adapter\.)?base_layer|original_module)(?=\.)")
"""Modules that torch.compile and peft put into names."""


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def named_places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The module and the attribute that hold each tensor.

    Parameters, then buffers that are saved and hold fractions or packed numbers; not those that are computed anew (RoPE).
    """
    wrapper = _wrapper(model)
    found: dict[str, tuple[nn.Module, str]] = {}
    buffers: dict[str, tuple[nn.Module, str]] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[_plain(f"{path}.{key}", wrapper)] = module, key
        for key, buffer in module.named_buffers(recurse=False):
            kept = key not in module._non_persistent_buffers_set and key != "inv_freq"
            if kept and (buffer.is_floating_point() or dtype_name(buffer.dtype) in PACKED):
                buffers[_plain(f"{path}.{key}", wrapper)] = module, key
    return found | buffers


def _wrapper(model: nn.Module) -> str:
    """The path inside a model to the one that torch.compile or peft wrapped."""
    unwrap = getattr(model, "get_base_model", None)
    inner = getattr(model, "_orig_mod", None) if unwrap is None else unwrap()
    if inner is None:
        return ""
    return f"{next(name for name, module in model.named_modules() if module is inner)}.{_wrapper(inner)}"


def _plain(name: str, wrapper: str) -> str:
    """A tensor's name without what wrappers add to it."""
    return WRAPPERS.sub("", name.removeprefix(".").removeprefix(wrapper)).removeprefix(".")


@contextlib.contextmanager
def loaded(module: nn.Module) -> Iterator[None]:
    """Inside, a module's own tensors that accelerate has offloaded are in memory."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def readable(module: nn.Module, tensor: Any) -> Any:
    """A tensor's values as a plain tensor; None where they cannot be read. Of a sharded one, every process must ask."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    if tensor.device.type == "meta" or tensor.is_complex():
        return None
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor.detach()
    return _dequantised(module, tensor)


def _dequantised(module: nn.Module, tensor: Any) -> Any:
    try:
        if type(tensor).__module__.startswith("bitsandbytes"):
            from transformers.integrations.bitsandbytes import dequantize_bnb_weight

            return dequantize_bnb_weight(tensor, getattr(module, "state", None))
        if type(tensor).dequantize is not Tensor.dequantize:
            return tensor.detach().dequantize()
    except Exception:  # of a library that has no kernel for this device
        return None
    return None


def quantisation(model: nn.Module, tensor: Tensor) -> str:
    """How a tensor is quantised: where two are alike in that, they hold the same values, or are not the same."""
    state = getattr(tensor, "quant_state", None)
    if state is not None:  # bitsandbytes in 4 bits
        inner: Any = [state.quant_type, state.blocksize, state.nested, state.dtype]
    elif hasattr(tensor, "__tensor_flatten__"):  # torchao
        inner = [(name, getattr(tensor, name).shape, getattr(tensor, name).dtype) for name in tensor.__tensor_flatten__()[0]]
    else:
        inner = []
    return f"{type(tensor).__name__} {getattr(getattr(model, 'config', None), 'dtype', None)} {inner}"


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
