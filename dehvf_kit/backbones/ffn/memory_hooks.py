"""Adds memory to a frozen model's feed-forward networks: FFN'(x) = FFN(x) + output_scale * act(x K^T) V.

`attach_memory` adds plain key/value memory; `hook_ffns` (of `ffn_hooks`) adds whatever a function returns at each site.
Source: the DEHVF paper, section on memory injection; Geva et al., arXiv:2012.14913 (an FFN is a key/value memory).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dehvf_kit.backbones.ffn.hooks import FfnHooks, hook_ffns
from dehvf_kit.backbones.ffn.sites import FfnSite, ffn_sites
from dehvf_kit.errors import ShapeError

__all__ = ["FfnHooks", "MemoryHandle", "attach_memory", "hook_ffns", "read_memory"]


class MemoryHandle:
    """Memory attached to a decoder; `detach()` gives the untouched decoder back, a second call does nothing."""

    def __init__(self, sites: Sequence[FfnSite], hooks: FfnHooks) -> None:
        self.sites = tuple(sites)
        self._hooks = hooks

    def detach(self) -> None:
        """Take the memory away. With gradient checkpointing, do so only after the backward pass."""
        self._hooks.remove()


def attach_memory(
    decoder: nn.Module,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    output_scale: float = 1.0,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> MemoryHandle:
    """Give every FFN of a decoder key/value memory: FFN'(x) = FFN(x) + output_scale * act(x K^T) V.

    Shapes: keys and values, one pair a site of `ffn_sites(decoder)`: [batch or 1, slots, hidden_size]; slots may
    differ between sites. A pass over `rows` sequences takes memory row // (rows / batch), the order in which
    `generate` expands beams and return sequences (MusicGen's guidance appends rows in another order: give it a memory
    of batch 1). `activation` None: each FFN's own. Gradients flow to both.
    Cost: 4 * slots * hidden_size FLOPs a token and site; memory rows are never copied.
    Raises: DecoderError if the decoder has no FFN; ShapeError for a wrong number of tensors or shape, and, in the
    forward pass, for rows that are no multiple of the memory's batch.
    """
    sites = ffn_sites(decoder)
    _check_memory(type(decoder).__name__, sites, keys, values)
    keys, values = tuple(keys), tuple(values)

    def memory(index: int, x: Tensor) -> Tensor:
        act = sites[index].activation if activation is None else activation
        return output_scale * read_memory(x, keys[index], values[index], act)

    return MemoryHandle(sites, hook_ffns(decoder, sites, memory))


def read_memory(x: Tensor, keys: Tensor, values: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """act(x K^T) V for x [rows, tokens, hidden], keys and values [batch or 1, slots, hidden]; x's shape comes back.

    Raises: ShapeError if rows are no multiple of batch. Cost: 4 * rows * tokens * slots * hidden FLOPs.
    """
    batch, hidden_size = max(keys.shape[0], values.shape[0]), keys.shape[-1]
    if x.shape[0] % batch:
        raise ShapeError(
            f"memory: the decoder runs {x.shape[0]} rows, the memory has a batch of {batch}; "
            "rows must be a multiple of it (beams and return sequences repeat each row)"
        )
    tokens = x.reshape(batch, -1, hidden_size)
    keys, values = keys.to(x), values.to(x)
    return torch.matmul(activation(torch.matmul(tokens, keys.mT)), values).reshape(x.shape)


def _check_memory(decoder: str, sites: Sequence[FfnSite], keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for name, tensors in (("keys", keys), ("values", values)):
        if len(tensors) != len(sites):
            raise ShapeError(
                f"attach_memory: {decoder} has {len(sites)} FFN sites, {name} holds {len(tensors)} tensors; "
                "give one [batch or 1, slots, hidden_size] tensor a site, in the order of ffn_sites"
            )
    batches: set[int] = set()
    for index, (site, key, value) in enumerate(zip(sites, keys, values, strict=True)):
        for name, tensor in (("keys", key), ("values", value)):
            if tensor.ndim != 3 or tensor.shape[-1] != site.hidden_size:
                raise ShapeError(
                    f"attach_memory: {name}[{index}] ({site.path}) has shape {list(tensor.shape)}; "
                    f"needed is [batch or 1, slots, {site.hidden_size}]"
                )
        if key.shape[1] != value.shape[1]:
            raise ShapeError(
                f"attach_memory: keys[{index}] has shape {list(key.shape)}, values[{index}] {list(value.shape)}; "
                "both must have the same number of slots"
            )
        batches.update((key.shape[0], value.shape[0]))
    if len(batches - {1}) > 1:
        raise ShapeError(
            f"attach_memory: the tensors have batches {sorted(batches)}; all must have one batch size, or 1"
        )
