"""Multi-head attention without a mask matrix to build: xformers on CUDA where it accepts the shapes, SDPA elsewhere.

The only file that knows xformers.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dehvf_kit.errors import DehvfError

Backend = Literal["auto", "xformers", "sdpa"]


@lru_cache(maxsize=1)
def xformers_installed() -> bool:
    """Whether xformers can be imported here (it is not imported to find out)."""
    return importlib.util.find_spec("xformers") is not None


def pick_backend(query: Tensor, key: Tensor, masked: bool, backend: Backend = "auto") -> Literal["xformers", "sdpa"]:
    """The implementation for these tensors. Shapes: query, key [batch, length, head, width].

    `auto` takes xformers for unmasked CUDA tensors that its own dispatch accepts. Raises: DehvfError where xformers is
    asked for by name and cannot run.
    """
    if backend == "sdpa":
        return "sdpa"
    reason = _xformers_refusal(query, key, masked)
    if reason is None:
        return "xformers"
    if backend == "xformers":
        raise DehvfError(f"attention backend 'xformers' cannot run here: {reason}; use 'auto' or 'sdpa'")
    return "sdpa"


def _xformers_refusal(query: Tensor, key: Tensor, masked: bool) -> str | None:
    if not xformers_installed():
        return "xformers is not installed"
    if query.device.type != "cuda":
        return f"the tensors are on {query.device.type}, not on cuda"
    if masked:
        return "groups of different sizes need a mask"
    trained = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    try:
        from xformers.ops import fmha

        fmha._dispatch_fw(fmha.Inputs(query=query, key=key, value=key), needs_gradient=trained)
    except (NotImplementedError, ValueError, RuntimeError, ImportError, AttributeError) as error:
        # its own dispatch refuses with the first two; the others are builds for another torch, CUDA or device
        return str(error).strip().splitlines()[0]
    return None


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, backend: Backend = "auto") -> Tensor:
    """softmax(q k^T / sqrt(width)) v for every head.

    Shapes: query [batch, query, head, width], key and value [batch, key, head, width], mask [batch, key] (True: attend)
    or None -> [batch, query, head, width]. Cost: 4 * batch * query * key * head * width FLOPs.
    """
    if pick_backend(query, key, mask is not None, backend) == "xformers":
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(query, key, value)
    bias = None if mask is None else mask[:, None, None, :]
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
