"""The memory of the paper's equation by plain forward hooks, one row after the other: slow, and written apart.

Nothing here is shared with `attach_memory` but the list of sites, so that each can be checked against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.ffn.sites import FfnSite


@contextmanager
def reference_memory(
    model: nn.Module, sites: Sequence[FfnSite], keys: Sequence[Tensor], values: Sequence[Tensor], output_scale: float
) -> Iterator[None]:
    """While open, every FFN of a model gives FFN(x) + output_scale * act(x K^T) V.

    Args:
        model: the decoder.
        sites: of `ffn_sites(model)`.
        keys, values: [batch, slots, hidden_size] per site.
        output_scale: factor of the memory's output.

    A module that several sites share takes their memories
    in turn, in the order of its calls.
    """
    handles = []
    modules: dict[int, list[int]] = {}
    for index, site in enumerate(sites):
        modules.setdefault(id(model.get_submodule(site.entry)), []).append(index)
    for indices in modules.values():
        site = sites[indices[0]]
        turn = _Turn(sites, indices, keys, values, output_scale)
        entry, last = model.get_submodule(site.entry), model.get_submodule(site.exit)
        handles.append(entry.register_forward_pre_hook(turn.take, with_kwargs=True))
        if site.before_exit:
            handles.append(last.register_forward_pre_hook(lambda module, args, turn=turn: (turn.add(args[0]), *args[1:])))
        else:
            handles.append(last.register_forward_hook(lambda module, args, output, turn=turn: turn.add(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Turn:
    """Computes one module's additions, call by call."""

    def __init__(
        self, sites: Sequence[FfnSite], indices: list[int], keys: Sequence[Tensor], values: Sequence[Tensor], output_scale: float
    ) -> None:
        self.sites, self.indices, self.keys, self.values = sites, indices, keys, values
        self.output_scale = output_scale
        self.calls = 0
        self.x: Tensor

    def take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.x = (args[0] if args else next(iter(kwargs.values()))).clone()

    def add(self, output: Any) -> Any:
        index = self.indices[self.calls % len(self.indices)]
        self.calls += 1
        addition = self.output_scale * self._read(self.x, index)
        if isinstance(output, tuple):
            return (output[0] + addition.view(output[0].shape), *output[1:])
        return output + addition.view(output.shape)

    def _read(self, x: Tensor, index: int) -> Tensor:
        site, keys, values = self.sites[index], self.keys[index], self.values[index]
        rows = x.transpose(0, 1) if site.tokens_first else x
        samples = rows.reshape(len(keys), -1, site.hidden_size)
        read = [_read_one(sample, key, value, site.activation) for sample, key, value in zip(samples, keys, values, strict=True)]
        added = torch.stack(read).view(rows.shape)
        return (added.transpose(0, 1) if site.tokens_first else added).contiguous()


def _read_one(x: Tensor, key: Tensor, value: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """act(x K^T) V of one sample, slot by slot: x [tokens, hidden], key and value [slots, hidden]."""
    added = torch.zeros_like(x)
    for k, v in zip(key.to(x.dtype), value.to(x.dtype), strict=True):
        added = added + activation((x * k).sum(-1, keepdim=True)) * v
    return added
