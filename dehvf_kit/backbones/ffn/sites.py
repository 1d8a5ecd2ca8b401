"""Lists the places where memory can be added to a model: the feed-forward network (FFN) of each layer.

A site says where the FFN's input x is (after its norm) and where FFN(x) itself comes out (before the residual is
added). Sites are found by structure (`ffn_structure`, `ffn_parts`), never by the model's name, so language decoders
and vision towers are read alike; `ffn_overrides` says what structure cannot tell. Reading a model runs nothing and
touches no weight's values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dehvf_kit.backbones.ffn.overrides import FfnOverride, ffn_override
from dehvf_kit.backbones.ffn.parts import FfnPart, ffn_parts, inside
from dehvf_kit.backbones.ffn.structure import activation_name, activations, find_activation, norm_width
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
    """The FFN of every layer of a decoder or vision tower, in the order they run.

    One site a layer as a rule; none for layers without an FFN; two where attention runs between two FFNs of one
    layer. FFN branches that run side by side (a mixture beside a shared MLP) count once. A layer that runs several
    times in a pass is one site, a module shared by several layers one site for each of them.
    Raises: DecoderError if no layer holds an FFN, saying what was looked for and found; or if several stacks of
    layers hold one and nothing tells which is meant. Cost: milliseconds, whatever the size; nothing is run.
    """
    config = _text_config(model)
    override = ffn_override(getattr(config, "model_type", None)) or FfnOverride()
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
    as_wide = [path for path in own if found[path][0].hidden_size == getattr(config, "hidden_size", None)]
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


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


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
    given = override.activation or find_activation(ffn, layer, hidden_size) or _configured_activation(config)
    if isinstance(given, str):
        return activations()[given], given
    return given if isinstance(given, tuple) else (given, activation_name(given))


def _configured_activation(config: Any) -> str:
    for name in ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"):
        if getattr(config, name, None) in activations():
            return str(getattr(config, name))
    return "silu"


def _hidden_sizes(layer: nn.Module, config: Any) -> list[int]:
    """Widths a layer's FFN may have, likeliest first: its own norms', the configuration's, inner norms'."""
    sizes = [norm_width(part) for part in layer.children()]
    sizes += [getattr(config, name, None) for name in ("hidden_size", "d_model", "n_embd", "embed_dim")]
    sizes += [norm_width(part) for part in layer.modules()]
    return list(dict.fromkeys(size for size in sizes if isinstance(size, int)))
