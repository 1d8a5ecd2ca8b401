"""Finds the feed-forward networks (FFNs) inside one layer: as modules, or as two linear layers that make one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from dehvf_kit.backbones.ffn.code import child_calls
from dehvf_kit.backbones.ffn.structure import find_activation, is_ffn, is_norm, linear_shape, mixes_tokens, norm_width


@dataclass(frozen=True)
class FfnPart:
    """One FFN inside a layer, all paths below the layer (empty: the layer itself).

    `path` names it, `entry` takes x, `exit` gives FFN(x) (or takes it, where `before_exit`), `holder` has its weights.
    """

    path: str
    entry: str
    exit: str
    holder: str
    before_exit: bool = False


def inside(path: str, name: str) -> str:
    """A module path extended by a child's name; either may be empty."""
    return f"{path}.{name}" if path and name else path or name


def ffn_parts(layer: nn.Module, hidden_size: int) -> list[FfnPart]:
    """The FFNs of a layer in the order they run, branches on one input counted once; empty if there is none.

    Looked for, in this order: the layer itself (XLM lists its FFNs apart), modules below it, two neighbouring linear
    layers (OPT, BERT). An FFN module with a norm of the hidden size is taken apart: the norm is no part of FFN(x).
    """
    if is_ffn(layer, hidden_size) and not any(is_norm(child) for child in layer.children()):
        return [_proper_part(layer, "", hidden_size)]
    found = list(_ffn_modules(layer, "", hidden_size))
    if not found and find_activation(layer, layer, hidden_size) is not None:
        return _linear_pair(layer, "", hidden_size)
    return _once_a_segment(layer, found)


def _ffn_modules(module: nn.Module, path: str, hidden_size: int) -> Iterator[FfnPart]:
    """The outermost FFN modules below a module, in definition order."""
    for name, child in module.named_children():
        child_path = inside(path, name)
        if is_ffn(child, hidden_size):
            yield _proper_part(child, child_path, hidden_size)
        elif not _closed(child):
            yield from _ffn_modules(child, child_path, hidden_size)


def _closed(module: nn.Module) -> bool:
    """Whether nothing inside can be a layer's FFN: attention and norms (a block that holds attention is open)."""
    holds_norm = any(is_norm(child) for child in module.children())
    return is_norm(module) or (mixes_tokens(type(module)) and not holds_norm)


def _proper_part(ffn: nn.Module, path: str, hidden_size: int) -> FfnPart:
    """An FFN module, less the norm of its input or output where it has one inside."""
    whole = FfnPart(path, path, path, path)
    children = list(ffn.named_children())
    norms = [index for index, (_, child) in enumerate(children) if norm_width(child) == hidden_size]
    if not norms:
        return whole
    within = list(_ffn_modules(ffn, path, hidden_size)) or _linear_pair(ffn, path, hidden_size)
    if len(within) == 1:
        return within[0]
    if norms[-1] == len(children) - 1:
        return FfnPart(path, path, inside(path, children[-1][0]), path, before_exit=True)
    return whole


def _linear_pair(module: nn.Module, path: str, hidden_size: int) -> list[FfnPart]:
    """Two neighbouring linear layers outside attention, hidden -> wider and wider -> hidden."""
    linears = list(_linears(module, path))
    for (up, up_shape), (down, down_shape) in zip(linears, linears[1:], strict=False):
        if up_shape[0] == hidden_size == down_shape[1] and up_shape[1] == down_shape[0]:
            return [FfnPart(down, up, down, path)]
    return []


def _linears(module: nn.Module, path: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """The linear layers of a module in definition order, attention and other mixing left out."""
    for name, child in module.named_children():
        shape = linear_shape(child)
        if shape is not None:
            yield inside(path, name), shape
        elif not mixes_tokens(type(child)):
            yield from _linears(child, inside(path, name))


def _once_a_segment(layer: nn.Module, parts: list[FfnPart]) -> list[FfnPart]:
    """Of FFNs that run side by side, one: between two attentions memory is added once.

    The one that takes the fewest arguments (an MLP rather than experts that also take their routing), of those the
    last called. FFNs whose calls the source does not show stay as they are.
    """
    if len(parts) == 1:
        return parts
    by_path = {part.path: part for part in parts}
    segments: list[list[tuple[int, FfnPart]]] = [[]]
    for path, argument_count in child_calls(type(layer)):
        if path in by_path:
            segments[-1].append((argument_count, by_path.pop(path)))
        elif _mixes(layer, path):
            segments.append([])
    chosen = [min(reversed(segment), key=lambda call: call[0])[1] for segment in segments if segment]
    return chosen + list(by_path.values())


def _mixes(layer: nn.Module, path: str) -> bool:
    try:
        return mixes_tokens(type(layer.get_submodule(path)))
    except AttributeError:
        return False
