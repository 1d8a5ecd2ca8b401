"""The tensors of a base model, whole and by their own names, however they are held.

Offloaded tensors are fetched, sharded ones gathered, quantised ones dequantised by their own library. A linear layer whose library
keeps its weight in tensors of its own (GPTQ, AWQ, HQQ, compressed-tensors) is one weight: what the layer makes of the identity.
The names are those of the model without what torch.compile and peft put into them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dehvf_kit.backbones.attached import keep_differentiable, release

PACKED = ("int8", "uint8", "int16", "int32")
"""Dtypes in which quantised weights are stored, several in a number."""
WHOLE = ""
"""The key of a packed layer's weight, which no single tensor holds."""
ROWS = 1024
"""Of the identity, at once."""
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
    for module in list(model.modules()):
        decompress(module)
    for path, module in model.named_modules():
        if is_packed(module):
            found[_plain(f"{path}.weight", wrapper)] = module, WHOLE
            if isinstance(getattr(module, "bias", None), Tensor):
                found[_plain(f"{path}.bias", wrapper)] = module, "bias"
            continue
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


def decompress(module: nn.Module) -> None:
    """Do now what compressed-tensors does at a model's first pass, so that tensors are the same before and after it."""
    hook = getattr(module, "ct_decompress_hook", None)
    if hook is not None:
        module._forward_pre_hooks[hook.id](module, ())


def is_packed(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose library keeps the weight in tensors of its own."""
    if not hasattr(module, "in_features") or next(module.children(), None) is not None:
        return False
    return hasattr(module, "quantization_scheme") or (
        bool(_own(module)) and not isinstance(getattr(module, "weight", None), Tensor)
    )


def _own(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module itself."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def held(module: nn.Module, key: str) -> Any:
    """What `named_places` names: a tensor, or the module itself where that is packed."""
    return module if key == WHOLE else getattr(module, key)


def bits(module: nn.Module) -> Any:
    """How many bits a packed layer keeps for a weight, as its library says it; "" where it does not."""
    scheme = getattr(getattr(module, "quantization_scheme", None), "weights", None)
    found = getattr(scheme, "num_bits", None) or getattr(module, "bits", None) or getattr(module, "w_bit", None)
    return found or getattr(module, "meta", {}).get("nbits", "")


@torch.no_grad()
def _unpacked(module: Any) -> Tensor:
    """The weight of a packed layer, [out, in]: each product of the identity has one term, so that nothing is rounded twice."""
    dtype = getattr(module, "compute_dtype", None) or next(one.dtype for one in _own(module).values() if one.is_floating_point())
    device = next(iter(_own(module).values())).device
    pieces = torch.split(torch.eye(module.in_features, dtype=dtype, device=device), ROWS)
    kept = keep_differentiable(module)
    try:
        whole = torch.cat([module.forward(piece) for piece in pieces]).T
    finally:
        release(kept)
    bias = getattr(module, "bias", None)
    return whole if bias is None else whole - bias[:, None]


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
    if isinstance(tensor, nn.Module):
        return None if any(one.is_meta for one in _own(tensor).values()) else _unpacked(tensor)
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


def quantisation(model: nn.Module, tensor: Any) -> str:
    """How a tensor is quantised: where two are alike in that, they hold the same values, or are not the same."""
    state = getattr(tensor, "quant_state", None)
    if state is not None:  # bitsandbytes in 4 bits
        inner: Any = [state.quant_type, state.blocksize, state.nested, state.dtype]
    elif isinstance(tensor, nn.Module):
        inner = [str(getattr(tensor, "quantization_scheme", ""))]
        inner += [(name, tuple(one.shape), one.dtype) for name, one in _own(tensor).items()]
    elif hasattr(tensor, "__tensor_flatten__"):  # torchao
        inner = [(name, getattr(tensor, name).shape, getattr(tensor, name).dtype) for name in tensor.__tensor_flatten__()[0]]
    else:
        inner = []
    return f"{type(tensor).__name__} {getattr(getattr(model, 'config', None), 'dtype', None)} {inner}"
