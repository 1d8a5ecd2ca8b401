"""Bytes and FLOPs of a computation, watched while it runs; on the meta device it runs without any memory.

saved: what autograd keeps between forward and backward, each storage once, parameters and buffers left out.
peak: the most bytes that tensors made inside the block hold at one time, views and parameters left out. That is what an
allocator without fragmentation would hand out.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class LiveBytes(TorchDispatchMode):
    """Counts the storages made inside the block: `now` and `peak`, in bytes."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._take(tensor.untyped_storage())
        return out

    def _take(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._give_back, size)

    def _give_back(self, size: int) -> None:
        self.now -= size


class SavedBytes:
    """Counts what autograd keeps for backward inside the block: `total`, in bytes."""

    def __init__(self, model: nn.Module) -> None:
        own = [*model.parameters(), *model.buffers()]
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._kept: dict[int, Any] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self._kept.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._kept[storage._cdata] = storage  # kept alive, so that no other takes its place
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def forget(self) -> int:
        """The total; what was kept alive is let go."""
        total = self.total
        self._kept.clear()
        return total


@contextlib.contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """FLOPs as torch counts them, attention written out so that every product is seen."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


class _Fused(torch.autograd.Function):
    """The shape of a fused attention kernel: keeps query, key, value, output and one number a row; computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = query.shape[:-1]
        output = query.new_empty(rows[0], rows[2], rows[1], value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(rows, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, `scaled_dot_product_attention` takes the memory that a fused kernel takes, and gives no values.

    For counting on the meta device, where torch would write attention out. Attention of four axes only.
    """
    original = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.ndim != 4 or query.device.type != "meta":
            return original(query, key, value, *args, **kwargs)
        return _Fused.apply(query, key, value)

    with _replaced(functional, "scaled_dot_product_attention", fused):
        yield


@contextlib.contextmanager
def _replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


@contextlib.contextmanager
def values_unknown() -> Iterator[None]:
    """Inside, what asks for a value on the meta device goes the general way: masks are built out, selections keep everything.

    Patches transformers' and torch's own questions for the time of the block; tensors with numbers are answered as ever.
    """
    from torch.fx.experimental import _config
    from transformers import masking_utils

    equal = torch.equal

    def same_shape(one: Tensor, other: Tensor) -> bool:
        known = one.device.type != "meta" and other.device.type != "meta"
        return equal(one, other) if known else one.shape == other.shape

    with contextlib.ExitStack() as patches:
        patches.enter_context(_replaced(masking_utils, "is_tracing", lambda *_: True))
        patches.enter_context(_replaced(torch, "equal", same_shape))
        patches.enter_context(_replaced(_config, "meta_nonzero_assume_all_nonzero", True))
        yield
