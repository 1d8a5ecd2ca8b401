"""Lists the places where memory can be added to a model: the feed-forward network (FFN) of each layer.

A site says where the FFN's input x is (after its norm) and where FFN(x) itself comes out (before the residual is
added). Sites are found by structure (`ffn_structure`), never by the model's name, so language decoders and vision
towers are read alike. Reading a model runs nothing and touches no weight's values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from dehvf_kit.backbones.ffn_structure import find_activation, is_ffn, is_norm, linear_shape, mixes_tokens
from dehvf_kit.errors import DecoderError, listing


@dataclass(frozen=True)
class FfnSite:
    """One layer's FFN.

    `layer_idx` is the layer's place in its list (0 first), `path` the module whose output is FFN(x), as a path inside
    the model it was read from, `hidden_size` the width of its input and output. `entry` is the module whose first
    input is x, `exit` is `path`; they differ only where a layer holds the FFN's two projections directly.
    """

    layer_idx: int
    path: str
    hidden_size: int
    activation: Callable[[Tensor], Tensor] = field(repr=False)
    activation_name: str
    layer_path: str = field(repr=False)
    entry: str = field(repr=False)
    exit: str = field(repr=False)


def ffn_sites(model: nn.Module) -> list[FfnSite]:
    """The FFN of every layer of a decoder or vision tower, in the order they run.

    Raises: DecoderError if no layer holds an FFN, saying what was looked for and found; or if several stacks of
    layers hold one and nothing tells which is meant. Cost: milliseconds, whatever the size; nothing is run.
    """
    root, root_path = _decoder_of(model)
    stacks: dict[str, list[FfnSite]] = {}
    for path, stack in _layer_stacks(root, root_path):
        sites = [site for idx, layer in enumerate(stack) for site in _layer_sites(layer, f"{path}.{idx}", idx, model)]
        if sites:
            stacks[path] = sites
    if not stacks:
        kinds = {type(layer).__name__ for _, stack in _layer_stacks(root, root_path) for layer in stack}
        raise DecoderError(
            f"{type(model).__name__}: no layer holds a feed-forward network. Looked for: a list of layers, each with a "
            "module (or two linear layers) that maps hidden size -> wider -> hidden size through an activation, token "
            f"by token. Found lists of: {listing(kinds)}. Memory can only be added where there is an FFN."
        )
    if len(stacks) > 1:
        raise DecoderError(
            f"{type(model).__name__}: several stacks of layers hold feed-forward networks: {listing(stacks)}. "
            "Pass the sub-model that is meant (for example model.get_submodule of its parent)."
        )
    return next(iter(stacks.values()))


def _decoder_of(model: nn.Module) -> tuple[nn.Module, str]:
    """The part of a model to search and its path: the text decoder of a language model, else the model itself."""
    get_decoder = getattr(model, "get_decoder", None)
    part = get_decoder() if callable(get_decoder) else None
    if isinstance(part, nn.Module):
        for path, module in model.named_modules():
            if module is part:
                return part, path
    return model, ""


def _layer_stacks(root: nn.Module, root_path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    """The outermost module lists below a module, with their paths."""
    for name, child in root.named_children():
        path = f"{root_path}.{name}" if root_path else name
        if isinstance(child, nn.ModuleList):
            yield path, child
        else:
            yield from _layer_stacks(child, path)


def _layer_sites(layer: nn.Module, layer_path: str, layer_idx: int, model: nn.Module) -> list[FfnSite]:
    """The FFN sites of one layer, one as a rule; none for layers without FFN (state-space, convolution)."""
    for hidden_size in _hidden_sizes(layer, model):
        found = _ffn_modules(layer, layer_path, hidden_size) or _linear_pair(layer, layer_path, hidden_size)
        sites = []
        for entry, exit_path, holder in found:
            activation = find_activation(holder, layer)
            if activation is None:
                continue
            sites.append(FfnSite(layer_idx, exit_path, hidden_size, *activation, layer_path, entry, exit_path))
        if sites:
            return sites
    return []


def _hidden_sizes(layer: nn.Module, model: nn.Module) -> list[int]:
    """Widths a layer's FFN may have, likeliest first: those of its norms, then the configuration's."""
    sizes: dict[int, None] = {}
    for part in layer.modules():
        shape = getattr(part, "normalized_shape", None)
        if is_norm(part):
            widths = [weight.shape[0] for weight in part.parameters(recurse=False) if weight.ndim == 1]
            sizes.update(dict.fromkeys(widths or (shape or ())[-1:]))
    config = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("hidden_size", "d_model", "n_embd", "embed_dim"):
        if isinstance(getattr(text, name, None), int):
            sizes[getattr(text, name)] = None
    return list(sizes)


def _ffn_modules(layer: nn.Module, path: str, hidden_size: int) -> list[tuple[str, str, nn.Module]]:
    """The outermost FFN modules below a layer as (entry, exit, holder)."""
    found = []
    for name, child in layer.named_children():
        child_path = f"{path}.{name}"
        if is_ffn(child, hidden_size):
            found.append((child_path, child_path, child))
        elif not mixes_tokens(type(child)):
            found.extend(_ffn_modules(child, child_path, hidden_size))
    return found


def _linear_pair(layer: nn.Module, path: str, hidden_size: int) -> list[tuple[str, str, nn.Module]]:
    """Two linear layers held by the layer itself, hidden -> wider and wider -> hidden (OPT, BART)."""
    linears = [(name, linear_shape(child)) for name, child in layer.named_children()]
    linears = [(name, shape) for name, shape in linears if shape is not None]
    for (up, up_shape), (down, down_shape) in zip(linears, linears[1:], strict=False):
        if up_shape[0] == hidden_size == down_shape[1] and up_shape[1] == down_shape[0]:
            return [(f"{path}.{up}", f"{path}.{down}", layer)]
    return []
