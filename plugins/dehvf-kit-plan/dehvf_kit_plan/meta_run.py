"""Running a model on the meta device: bytes watched while it runs, and answers where the meta device has no values.

saved: what autograd keeps between forward and backward, each storage once, without parameters and buffers.
peak: the most bytes that tensors made inside the block hold at one time, without views and parameters. That is what an
allocator without fragmentation would hand out.
Everything here acts in the calling thread alone: nothing of torch or transformers is patched.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
        self._own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
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


class fused_attention(TorchFunctionMode):  # noqa: N801 - used like a function
    """Inside, `scaled_dot_product_attention` takes the memory that a fused kernel takes, and gives no values.

    For counting on the meta device, where torch would write attention out. Attention of four axes only; what
    `nn.MultiheadAttention` calls inside torch is out of reach and counts as written out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            query = named["query"]
            if query.ndim == 4 and query.device.type == "meta":
                return _Fused.apply(query, named["key"], named["value"])
        return func(*args, **kwargs)


class _NoValues(TorchFunctionMode):
    """Answers questions about values that the meta device does not have as `values_unknown` says."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.equal and any(tensor.device.type == "meta" for tensor in args):
            return args[0].shape == args[1].shape
        if getattr(func, "__name__", "") in ("grouped_mm", "_grouped_mm") and args[0].device.type == "meta":
            return torch.mm(args[0], args[1][0])  # each token passes one expert, in any dtype
        if func is Tensor.__bool__ and args[0].device.type == "meta":
            frame = sys._getframe(1)
            while frame.f_globals is globals() and frame.f_back is not None:  # of another mode of this file
                frame = frame.f_back
            if frame.f_globals.get("__name__") == "transformers.masking_utils":  # asks whether no token is padding
                return False
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def values_unknown() -> Iterator[None]:
    """Inside, questions about values on the meta device are answered for the general case.

    Attention masks are built as for padded batches, `torch.equal` compares shapes, `nonzero` keeps every element.
    """
    from torch.fx.experimental import _config

    with _NoValues(), _config.patch(meta_nonzero_assume_all_nonzero=True):  # a patch of this thread alone
        yield


def backward(loss: Tensor) -> None:
    """`loss.backward()` under the modes of this file, checkpointed layers included.

    torch's own function is subject to function modes and leaves them before the engine runs, so that layers recomputed in
    backward would differ from their forward pass.
    """
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
