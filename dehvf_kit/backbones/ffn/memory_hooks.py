"""Adds memory, or whatever a function returns, to the output of a frozen model's feed-forward networks (FFNs).

`attach_memory` adds plain key/value memory, FFN'(x) = FFN(x) + output_scale * act(x K^T) V; `hook_ffns` adds `delta(site, x)`.
The model's own modules and weights stay as they are: removing the hooks restores the original model.
Source: the DEHVF paper, section on memory injection; Geva et al., arXiv:2012.14913 (an FFN is a key/value memory).
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dehvf_kit.backbones.attached import attached_to, forget, forget_compiled, keep_differentiable, names, note, release
from dehvf_kit.backbones.ffn.sites import FfnSite, ffn_sites
from dehvf_kit.backbones.ffn.structure import forward_arguments, overwrites_input
from dehvf_kit.errors import DecoderError, ShapeError

Delta = Callable[[int, Tensor], "Tensor | None"]


class MemoryHandle:
    """Memory attached to a decoder; `detach()`, or the end of a `with` block, gives the untouched decoder back.

    A second `detach()` does nothing. `sites` are those that have memory.
    """

    def __init__(self, decoder: nn.Module, sites: Sequence[FfnSite], hooks: FfnHooks) -> None:
        self.sites = tuple(sites)
        self._hooks = hooks
        self.places = _places(decoder, sites)
        note(self, {layer for layer, _ in self.places})

    @property
    def attached_as(self) -> str:
        """How messages call it."""
        return f"memory at {', '.join(site.path for site in self.sites[:3])}{', ...' if len(self.sites) > 3 else ''}"

    def __enter__(self) -> MemoryHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the memory away. With gradient checkpointing, do so only after the backward pass."""
        self._hooks.remove()
        forget(self, {layer for layer, _ in self.places})


def attach_memory(
    decoder: nn.Module,
    keys: Sequence[Tensor | None],
    values: Sequence[Tensor | None],
    output_scale: float = 1.0,
    activation: Callable[[Tensor], Tensor] | None = None,
    *,
    sites: Sequence[FfnSite] | None = None,
    stack: bool = False,
) -> MemoryHandle:
    """Give the FFNs of a decoder key/value memory: FFN'(x) = FFN(x) + output_scale * act(x K^T) V.

    A pass over `rows` sequences takes memory row // (rows / batch), the order in which `generate` expands beams and return
    sequences (MusicGen's guidance appends rows in another order: give it a memory of batch 1). Gradients flow to both tensors.
    Cost: 4 * slots * hidden_size FLOPs a token and site; memory rows are never copied.

    Args:
        decoder: the model; its weights stay as they are.
        keys, values: one tensor [batch or 1, slots, hidden_size] a site; slots may differ between sites. None in both leaves
            the site's layer alone.
        output_scale: factor of what is added.
        activation: used in place of each FFN's own.
        sites: some of `ffn_sites(decoder)`, to which keys and values then belong; None: all of them.
        stack: add to memory that a site has already, which is refused otherwise.

    Returns:
        The handle, also a context manager: `with attach_memory(...):` detaches at the end.

    Raises:
        DecoderError: if the decoder has no FFN, a site is not its own, or a site has memory already.
        ShapeError: for a wrong number of tensors or shape, and, in the forward pass, for rows that are no multiple of the
            memory's batch.
    """
    known = ffn_sites(decoder) if sites is None else list(sites)
    check_paths(decoder, known)
    _check_memory(type(decoder).__name__, known, keys, values)
    used = [(site, k, v) for site, k, v in zip(known, keys, values, strict=True) if k is not None and v is not None]
    chosen = [site for site, _, _ in used]
    if not stack:
        _refuse_second(decoder, chosen)

    def memory(index: int, x: Tensor) -> Tensor:
        site, key, value = used[index]
        return output_scale * read_memory(x, key, value, site.activation if activation is None else activation)

    return MemoryHandle(decoder, chosen, hook_ffns(decoder, chosen, memory))


def _refuse_second(decoder: nn.Module, sites: Sequence[FfnSite]) -> None:
    """Raises: DecoderError where a site has memory already, since adding to it by mistake shows nowhere but in the output."""
    twice = [path for path, count in Counter(site.path for site in sites).items() if count > 1]
    if twice:
        raise DecoderError(f"attach_memory: sites holds '{twice[0]}' twice; stack=True adds to a site again")
    held = [one for one in attached_to(decoder) if isinstance(one, MemoryHandle) and one.places & _places(decoder, sites)]
    if held:
        raise DecoderError(
            f"attach_memory: {type(decoder).__name__} has this attached already: {names(held)}; stack=True adds to it"
        )


def _places(decoder: nn.Module, sites: Sequence[FfnSite]) -> set[tuple[nn.Module, str]]:
    """Each site as its layer and its path inside that, which are the same in the decoder and in a part of it."""
    return {(decoder.get_submodule(site.layer_path), site.path.removeprefix(site.layer_path)) for site in sites}


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


def _check_memory(decoder: str, sites: Sequence[FfnSite], keys: Sequence[Tensor | None], values: Sequence[Tensor | None]) -> None:
    for name, tensors in (("keys", keys), ("values", values)):
        if len(tensors) != len(sites):
            raise ShapeError(
                f"attach_memory: {decoder} has {len(sites)} FFN sites, {name} holds {len(tensors)} tensors; "
                "give one [batch or 1, slots, hidden_size] tensor a site, in the order of ffn_sites"
            )
    batches: set[int] = set()
    for index, (site, key, value) in enumerate(zip(sites, keys, values, strict=True)):
        if key is None and value is None:
            continue
        for name, tensor in (("keys", key), ("values", value)):
            if tensor is None or tensor.ndim != 3 or tensor.shape[-1] != site.hidden_size:
                given = "is None" if tensor is None else f"has shape {list(tensor.shape)}"
                raise ShapeError(
                    f"attach_memory: {name}[{index}] ({site.path}) {given}; needed is [batch or 1, slots, {site.hidden_size}], "
                    "or None in keys and values to leave the layer alone"
                )
            batches.add(tensor.shape[0])
        if key.shape[1] != value.shape[1]:
            raise ShapeError(
                f"attach_memory: keys[{index}] has shape {list(key.shape)}, values[{index}] {list(value.shape)}; "
                "both must have the same number of slots"
            )
    if len(batches - {1}) > 1:
        raise ShapeError(f"attach_memory: the tensors have batches {sorted(batches)}; all must have one batch size, or 1")


class FfnHooks:
    """The hooks that `hook_ffns` placed; `remove()` takes them all away, a second call does nothing.

    Keep the hooks until the backward pass is over where gradient checkpointing is on: it runs the FFNs once more.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        self._differentiable: list[nn.Module] = []

    def __enter__(self) -> FfnHooks:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the hooks away: the model is then what it was before, bit for bit."""
        while self._handles:
            self._handles.pop().remove()
        while self._replaced:
            parent, name, original = self._replaced.pop()
            parent._modules[name] = original
        release(self._differentiable)
        forget_compiled()


def hook_ffns(model: nn.Module, sites: Sequence[FfnSite], delta: Delta) -> FfnHooks:
    """Add `delta(index_into_sites, x)` where FFN(x) comes out, at each site.

    Args:
        model: the decoder, or a module that holds it.
        sites: of `ffn_sites(model)`, all or some.
        delta: gives what is added.

    Shapes: x is [rows, tokens, hidden_size], also where the model flattens rows and tokens, puts tokens first or
    keeps a grid; it is [tokens, hidden_size] only where the whole model packs its samples into one sequence. The
    tensor returned has x's shape; None leaves the FFN's output object as it is. A site that runs
    several times in a pass is asked each time. A module shared by several sites gets a per-site shallow copy, which holds
    the same parameters, until the hooks are removed.
    Raises: DecoderError if a site's path is not in the model, or its 4-bit weights were repacked for inference; in the forward pass
    ShapeError for another shape.
    """
    return place_hooks(model, sites, lambda index, site: _hook_site(model, site, index, delta))


def place_hooks(model: nn.Module, sites: Sequence[Any], hook: Callable[[int, Any], list[RemovableHandle]]) -> FfnHooks:
    """The hooks that `hook(index, site)` places at sites of any kind (`layer_path`, `entry` and `exit`), as one handle."""
    check_paths(model, sites)
    hooks = FfnHooks()
    hooks._differentiable = keep_differentiable(model)
    copy_shared(model, sites, hooks)
    for index, site in enumerate(sites):
        hooks._handles.extend(hook(index, site))
    forget_compiled()
    return hooks


def check_paths(model: nn.Module, sites: Sequence[Any]) -> None:
    held = dict(model.named_modules(remove_duplicate=False))
    for index, site in enumerate(sites):
        missing = [path for path in (site.layer_path, site.entry, site.exit) if path not in held]
        if missing:
            raise DecoderError(
                f"{type(model).__name__}: site {index} ({site.path}) is not in the model: it has no '{missing[0]}'. "
                "Give the sites that are listed for this very model."
            )
        own = getattr(site, "activation", None)  # xIELU has parameters
        if isinstance(own, nn.Module) and any(True for _ in own.parameters()) and not any(part is own for part in held.values()):
            raise DecoderError(
                f"{type(model).__name__}: site {index} ({site.path}) is another model's, whose activation it has. "
                "Give the sites that are listed for this very model."
            )


def _hook_site(model: nn.Module, site: FfnSite, index: int, delta: Delta) -> list[RemovableHandle]:
    layer, entry, last = (model.get_submodule(path) for path in (site.layer_path, site.entry, site.exit))
    overwritten = _overwrites(entry)
    read_first = entry is not last or site.before_exit or overwritten
    names = forward_arguments(type(entry))
    layout: list[torch.Size] = []
    pending: list[Tensor] = []

    def take_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x = first_tensor(args, kwargs, names)
        pending[:] = [x.clone() if overwritten else x]

    def addition(x: Tensor) -> Tensor | None:
        return ask(delta, index, x, site.hidden_size, f"hook_ffns at {site.path}", layout, site.tokens_first)

    def add_to_ffn(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        return add_first(output, addition(first_tensor(args, kwargs, names)))

    def add_to_output(module: nn.Module, args: tuple, output: Any) -> Any:
        return add_first(output, addition(pending.pop()))

    def add_to_input(module: nn.Module, args: tuple) -> Any:
        return add_first(args, addition(pending.pop()))

    handles = []
    if site.entry != site.layer_path:
        handles.append(noted_layout(layer, layout))
    if not read_first:
        return [*handles, entry.register_forward_hook(add_to_ffn, with_kwargs=True)]
    handles.append(entry.register_forward_pre_hook(take_input, with_kwargs=True))
    if site.before_exit:
        return [*handles, last.register_forward_pre_hook(add_to_input)]
    return [*handles, last.register_forward_hook(add_to_output)]


def noted_layout(layer: nn.Module, layout: list[torch.Size]) -> RemovableHandle:
    """Keep in `layout` the shape of the states that a layer was last given."""

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states = first_tensor(args, kwargs)
        layout[:] = [states.shape] if isinstance(states, Tensor) else []

    return layer.register_forward_pre_hook(note, with_kwargs=True)


def ask(
    delta: Delta, index: int, x: Tensor, width: int, where: str, layout: Sequence[torch.Size], tokens_first: bool
) -> Tensor | None:
    """delta(index, x), x as [rows, tokens, hidden] whatever layout the model keeps it in; the result in the model's own layout.

    Raises: ShapeError where it is not [..., width] for x's rows and tokens.
    """
    rows = x.transpose(0, 1) if tokens_first else x
    if x.ndim == 2 and layout and layout[0][:-1].numel() == x.shape[0]:
        rows = x.view(*layout[0][:-1], x.shape[-1])
    elif x.ndim > 3:
        rows = x.flatten(1, -2)
    added = delta(index, rows)
    if added is None:
        return None
    if added.shape != (*rows.shape[:-1], width):
        raise ShapeError(
            f"{where}: delta {index} returned shape {list(added.shape)}, where x has shape {list(rows.shape)}; it must return "
            f"{[*rows.shape[:-1], width]}, or None"
        )
    return added.transpose(0, 1) if tokens_first else added


def _overwrites(entry: nn.Module) -> bool:
    return any(overwrites_input(type(part)) for part in entry.modules() if not type(part).__module__.startswith("torch"))


def first_tensor(args: tuple, kwargs: dict[str, Any], names: Sequence[str] = ()) -> Tensor:
    """A call's first tensor, whether given by place or by name."""
    if args:
        return args[0]
    by_name = [kwargs[name] for name in names if name in kwargs]
    return next(value for value in [*by_name, *kwargs.values()] if isinstance(value, Tensor))


def add_first(output: Any, addition: Tensor | None) -> Any:
    """FFN output plus an addition of as many elements; of a tuple, the first member is the FFN's output."""
    if addition is None:
        return output
    if isinstance(output, (tuple, list)):
        return (add_first(output[0], addition), *output[1:])
    return output + addition.reshape(output.shape).to(output.dtype)


def copy_shared(model: nn.Module, sites: Sequence[Any], hooks: FfnHooks) -> None:
    """Where several sites run one and the same module, give each place shallow copies of the path to it.

    The copies hold the very parameters and buffers of the original, so only the hooks on them differ.
    """
    owners: dict[int, list[Any]] = {}
    for site in sites:
        owners.setdefault(id(model.get_submodule(site.entry)), []).append(site)
    for places in owners.values():
        shared = _shared_modules(model, places)
        for path in dict.fromkeys(path for site in places for path in (site.entry, site.exit)):
            _copy_path(model, path, hooks, shared)


def _shared_modules(model: nn.Module, places: Sequence[Any]) -> set[int]:
    """The identities of the modules that lie on the paths to one FFN from more than one place."""
    seen: dict[int, set[str]] = {}
    for path in {path for site in places for path in (site.entry, site.exit)}:
        names = path.split(".")
        for depth in range(1, len(names) + 1):
            upper = ".".join(names[:depth])
            seen.setdefault(id(model.get_submodule(upper)), set()).add(upper)
    return {identity for identity, paths in seen.items() if len(paths) > 1}


def _copy_path(model: nn.Module, path: str, hooks: FfnHooks, shared: set[int]) -> None:
    """Replace every shared module on a path by a shallow copy of it, remembering the original."""
    parent = model
    for name in path.split("."):
        child = parent._modules[name]
        if id(child) in shared:
            copied = copy.copy(child)
            for table in ("_modules", "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
                copied.__dict__[table] = type(child.__dict__[table])(child.__dict__[table])
            copied.__dict__["_forward_pre_hooks_with_kwargs"] = OrderedDict(child._forward_pre_hooks_with_kwargs)
            hooks._replaced.append((parent, name, child))
            parent._modules[name] = copied
            child = copied
        parent = child
