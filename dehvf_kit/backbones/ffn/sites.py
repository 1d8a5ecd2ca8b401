"""Lists the places where memory can be added to a model: the feed-forward network (FFN) of each layer.

A site says where the FFN's input x is (after its norm) and where FFN(x) itself comes out (before the residual is added).
Sites are found by structure (`structure.py`), never by the model's name, so decoders and vision encoders are read alike;
`overrides.py` describes the families where auto-detection fails. Reading a model runs nothing and touches no weight's values.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dehvf_kit.backbones.base import config_size, config_value, text_config
from dehvf_kit.backbones.ffn.overrides import FFN_OVERRIDES, FfnOverride
from dehvf_kit.backbones.ffn.structure import (
    activation_name,
    activations,
    class_tree,
    find_activation,
    is_ffn,
    is_norm,
    linear_shape,
    mixes_tokens,
    norm_width,
)
from dehvf_kit.errors import DecoderError, listing


@dataclass(frozen=True)
class FfnSite:
    """One layer's FFN.

    `layer_idx` is the layer's place in the decoder (0 first), `path` the module that is the FFN, or whose output is
    FFN(x) where no module is, as a path inside the model it was read from; `hidden_size` the width of its input and
    output. The private rest is for `hook_ffns`: the module whose first input is x (`entry`), the one whose output is
    FFN(x) (`exit`, or whose input it is, `before_exit`), and whether states come as [tokens, rows, hidden].
    """

    layer_idx: int
    path: str
    hidden_size: int
    activation: Callable[[Tensor], Tensor] = field(repr=False)
    activation_name: str
    layer_path: str = field(repr=False)
    entry: str = field(repr=False)
    exit: str = field(repr=False)
    before_exit: bool = field(default=False, repr=False)
    tokens_first: bool = field(default=False, repr=False)


def ffn_sites(model: nn.Module) -> list[FfnSite]:
    """The FFN of every layer of a decoder or vision tower, in the order they run; of several stacks, one stack after the other.

    One site a layer as a rule; none for layers without an FFN; two where attention runs between two FFNs of one
    layer. FFN branches that run side by side (a mixture beside a shared MLP) count once. A layer that runs several
    times in a pass is one site, a module shared by several layers one site for each of them.
    Raises: DecoderError if no layer holds an FFN, saying what was looked for and found; or if several stacks of
    layers hold one and nothing tells which is meant. Cost: milliseconds, whatever the size; nothing is run.
    """
    config = text_config(model)
    override = FFN_OVERRIDES.get(getattr(config, "model_type", None), FfnOverride())
    root, root_path = _decoder_of(model)
    stacks = list(_layer_stacks(root, root_path))
    if override.layers:
        stacks = [(path, stack) for path, stack in _layer_stacks(model, "") if path.endswith(override.layers)]
    found: dict[str, list[FfnSite]] = {}
    for path, stack in stacks:
        sites = [
            site
            for idx, (name, layer) in enumerate(stack._modules.items())
            for site in _sites(layer, f"{path}.{name}", idx, config, override)
        ]
        if sites:
            found[path] = sites
    if not found:
        kinds = {type(layer).__name__ for _, stack in stacks for layer in stack}
        raise DecoderError(
            f"{type(model).__name__}: no layer holds a feed-forward network. Looked for: a list of layers, each with a "
            "module (or two linear layers) that maps hidden size -> wider -> hidden size through an activation, token "
            f"by token. Found lists of: {listing(kinds)}. Memory can only be added where there is an FFN; if there is "
            "one, describe it with register_ffn_override."
        )
    chosen = _main_stacks(model, found, config) if len(found) > 1 else list(found)
    return _in_one_count(found, dict(stacks), chosen)


def _main_stacks(model: nn.Module, found: dict[str, list[FfnSite]], config: Any) -> list[str]:
    """Of several stacks with FFNs, those that belong to the decoder itself and not to a tower beside it."""
    owners = {path: _owner(model, path) for path in found}
    own = [path for path, owner in owners.items() if type(getattr(owner, "config", None)) is type(config)]
    as_wide = [path for path in own if found[path][0].hidden_size == config_size(config, "hidden_size")]
    chosen = as_wide or own
    widths = {found[path][0].hidden_size for path in chosen}
    # Beside a language model's own layers may stand towers; which part of a vision model is meant, nothing tells.
    owned = chosen if getattr(model, "main_input_name", "input_ids") == "input_ids" else list(found)
    if len(widths) == 1 and len({id(owners[path]) for path in owned}) == 1:
        return chosen
    raise DecoderError(
        f"{type(model).__name__}: several stacks of layers hold feed-forward networks: {listing(found)}. Pass the "
        "sub-model that is meant, or name the stack with register_ffn_override(model_type, layers=...)."
    )


def _in_one_count(
    found: dict[str, list[FfnSite]], stacks: Mapping[str, nn.ModuleList | nn.Sequential], chosen: list[str]
) -> list[FfnSite]:
    """The sites of the chosen stacks, their layers counted through."""
    sites, offset = [], 0
    for path in chosen:
        sites += [FfnSite(**{**vars(site), "layer_idx": site.layer_idx + offset}) for site in found[path]]
        offset += len(stacks[path])
    return sites


def _decoder_of(model: nn.Module) -> tuple[nn.Module, str]:
    """The part of a model to search and its path: the text decoder of a language model, else the model itself."""
    get_decoder = getattr(model, "get_decoder", None)
    part = get_decoder() if callable(get_decoder) else None
    if isinstance(part, nn.Module) and any(isinstance(module, nn.ModuleList) for module in part.modules()):
        for path, module in model.named_modules():
            if module is part:
                return part, path
    return model, ""


def _layer_stacks(root: nn.Module, root_path: str) -> Iterator[tuple[str, nn.ModuleList | nn.Sequential]]:
    """The outermost module lists below a module, with their paths."""
    for name, child in root.named_children():
        path = inside(root_path, name)
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(list(child.children())) > 0:
            yield path, child
        else:
            yield from _layer_stacks(child, path)


def _owner(model: nn.Module, path: str) -> nn.Module:
    """The innermost model of its own (a transformers model with a configuration) on a path."""
    from transformers import PreTrainedModel

    owner, part = model, model
    for name in path.split("."):
        part = part.get_submodule(name)
        owner = part if isinstance(part, PreTrainedModel) else owner
    return owner


def _sites(layer: nn.Module, layer_path: str, idx: int, config: Any, override: FfnOverride) -> list[FfnSite]:
    """The FFN sites of one layer, one as a rule; none for layers without FFN (state-space, convolution)."""
    for hidden_size in _hidden_sizes(layer, config):
        sites = []
        for part in _parts(layer, hidden_size, override):
            activation = _activation(layer.get_submodule(part.holder), layer, hidden_size, config, override)
            sites.append(
                FfnSite(
                    idx,
                    inside(layer_path, part.path),
                    hidden_size,
                    *activation,
                    layer_path,
                    inside(layer_path, part.entry),
                    inside(layer_path, part.exit),
                    part.before_exit,
                    override.tokens_first,
                )
            )
        if sites:
            return sites
    return []


def _parts(layer: nn.Module, hidden_size: int, override: FfnOverride) -> list[FfnPart]:
    if override.entry is None or override.exit is None:
        return ffn_parts(layer, hidden_size)
    held = {path for path, _ in layer.named_modules()}
    if {override.entry, override.exit} <= held:
        holder = override.entry if override.entry == override.exit else ""
        return [FfnPart(override.exit, override.entry, override.exit, holder)]
    return []


def _activation(
    ffn: nn.Module, layer: nn.Module, hidden_size: int, config: Any, override: FfnOverride
) -> tuple[Callable[[Tensor], Tensor], str]:
    made = override.activation_of and override.activation_of(config)
    given = override.activation or made or find_activation(ffn, layer, hidden_size) or _configured_activation(config)
    if isinstance(given, str):
        return activations()[given], given
    return given if isinstance(given, tuple) else (given, activation_name(given))


def _configured_activation(config: Any) -> str:
    for name in ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"):
        if (value := str(config_value(config, name))) in activations():
            return value
    return "silu"


def _hidden_sizes(layer: nn.Module, config: Any) -> list[int]:
    """Widths a layer's FFN may have, likeliest first: its own norms', the configuration's, inner norms'."""
    sizes = [norm_width(part) for part in layer.children()]
    sizes += [config_size(config, name) for name in ("hidden_size", "d_model", "n_embd", "embed_dim")]
    sizes += [norm_width(part) for part in layer.modules()]
    return list(dict.fromkeys(size for size in sizes if isinstance(size, int)))


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
    """The linear layers of a module in definition order, attention and other mixing excluded."""
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


@functools.cache
def child_calls(cls: type) -> tuple[tuple[str, int], ...]:
    """The modules a forward calls, in source order, as (path below the module, number of arguments).

    `self.mlps[0](x)` gives `("mlps.0", 1)`. Calls in a loop or through a local name are not resolved.
    """
    calls: list[tuple[int, int, str, int]] = []
    for definition in ast.walk(class_tree(cls)):
        if isinstance(definition, ast.FunctionDef) and definition.name == "forward":
            for node in ast.walk(definition):
                path = _self_path(node.func) if isinstance(node, ast.Call) else None
                if path:
                    # The end of a call orders nested calls inside out, the way they run.
                    end = (node.end_lineno or 0, node.end_col_offset or 0)
                    calls.append((*end, path, len(node.args) + len(node.keywords)))
            break
    return tuple((path, count) for _, _, path, count in sorted(calls))


def _self_path(node: ast.AST) -> str | None:
    """`self.a.b[0]` as `a.b.0`; None for anything else."""
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return node.attr
        owner = _self_path(node.value)
        return f"{owner}.{node.attr}" if owner else None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        owner = _self_path(node.value)
        return f"{owner}.{node.slice.value}" if owner else None
    return None
