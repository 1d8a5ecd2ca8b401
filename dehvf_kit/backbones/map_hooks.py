"""Adds to the linear maps inside a frozen decoder's layers: what each row's image adds to a weight, a bias, a scale.

Source: the place of VLoRA's weights (arXiv:2405.20339) and of LLaMA-Adapter V2's biases and scales (arXiv:2304.15010).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dehvf_kit.backbones.ffn.memory_hooks import Delta, FfnHooks, add_first, ask, first_tensor, noted_layout, place_hooks
from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.backbones.ffn.structure import linear_shape
from dehvf_kit.backbones.layer_hooks import NO_STREAM, refuse
from dehvf_kit.errors import DecoderError, ShapeError

ROLES = {
    "qkv": r"qkv(_proj)?|query_key_value|c_attn|in_proj_qkv|Wqkv",
    "query": r"q|q_proj|query|query_proj|q_lin|q_b_proj|wq|Wq|project_q",
    "key": r"k|k_proj|key|key_proj|k_lin|wk|Wk|project_k",
    "value": r"v|v_proj|value|value_proj|v_lin|wv|Wv|project_v",
    "output": r"o|o_proj|out_proj|out_lin|wo|attn_out|project_o|attention_out|\S*att(n|ention)(\.output)?\.(c_proj|dense|Wo)",
    "gate_up": r"gate_up_proj|mlp\.Wi|shared_mlp\.input_linear",
    "gate": r"gate_proj|w1|mlp_gate|w_0|proj_up_gate",
    "up": r"up_proj|fc1|fc_in|c_fc|w3|wi|dense_h_to_4h|lin1|(fc|w)_1|proj_up|layer_1|ffn\.0|(intermediate|dense)\.dense",
    "down": r"down_proj|fc_?2|fc_out|w2|dense_4h_to_h|lin2|w_out|proj_down|layer_2|ffn\.2|mlp\.(c_proj|Wo)|output.(dense|linear)",
}
"""role -> names of such maps in transformers, with the module that holds them where a name has two; other names are roles."""
NO_MAPS = {"prophetnet": NO_STREAM["prophetnet"]}
"""model_type -> why nothing can be added at its maps."""


@dataclass(frozen=True)
class MapSite:
    """One linear map of a layer: the layer's number, the map's path, its role and its two widths.

    `role`: query, key, value, output, gate, up, down; qkv and gate_up where one map holds several; else the module's own name.
    """

    layer_idx: int
    path: str
    role: str
    in_features: int
    out_features: int
    layer_path: str = field(repr=False)
    tokens_first: bool = field(default=False, repr=False)

    @property
    def entry(self) -> str:
        """The module whose input and output are hooked."""
        return self.path

    exit = entry


def map_sites(decoder: nn.Module) -> list[MapSite]:
    """The linear maps of every decoder layer that holds an FFN, as peft's `all-linear` finds them, layer by layer.

    Left out: maps of single experts and routers, which see some tokens of a batch only; maps whose module is never called.
    Sizes are the map's own, so key and value maps of grouped queries, and fused ones, come with theirs.
    Raises: DecoderError where no layer has an FFN or a linear map, and for a family refused by name. Cost: milliseconds.
    """
    refuse(decoder, NO_MAPS, "at its linear maps")
    found = []
    for site in {site.layer_path: site for site in ffn_sites(decoder)}.values():
        layer = decoder.get_submodule(site.layer_path)
        for name, module in layer.named_modules():
            shape = linear_shape(module)
            if name and shape is not None and not routed(name):
                path = f"{site.layer_path}.{name}"
                found.append(MapSite(site.layer_idx, path, role_of(name), *shape, site.layer_path, site.tokens_first))
    if not found:
        raise DecoderError(f"{type(decoder).__name__}: its layers hold no linear map; there is nothing to hook")
    return found


def role_of(name: str) -> str:
    """The role of a map from its path in the layer; a map named `linear` has that of the module that holds it."""
    path = name.removesuffix(".linear")
    last = path.rpartition(".")[2]
    return next((role for role, names in ROLES.items() if re.search(rf"(^|\.)({names})$", path)), last)


def routed(name: str) -> bool:
    """Whether a map is an expert's or a router's, which see some tokens of a batch only."""
    return bool(re.search(r"(^|\.)(experts?|router|block_sparse_moe)\.|(^|\.)(router|gate)$", name))


def hook_maps(
    decoder: nn.Module, sites: Sequence[MapSite], delta: Delta | None = None, scale: Callable[[int], Tensor | None] | None = None
) -> FfnHooks:
    """Make each map W(x) into W(scale * x) + delta(index_into_sites, scale * x).

    Shapes: x [rows, tokens, in_features], delta's result [rows, tokens, out_features] or None, scale's [in_features] or None.
    A bias is a delta that returns it expanded; `low_rank` is the delta of a weight that each row has of its own.

    Args:
        decoder: the model; its weights stay as they are.
        sites: `map_sites(decoder)` or some of them.
        delta: what is added to a map's output.
        scale: what its input is multiplied with.

    Returns:
        The hooks: `remove()`, or the end of a `with` block, gives the untouched decoder back.

    Raises:
        DecoderError: for a site that is not in the model.
        ShapeError: in the forward pass, for a delta of another shape.
    """

    def hook(index: int, site: MapSite) -> list[RemovableHandle]:
        module = decoder.get_submodule(site.path)
        layout: list[torch.Size] = []
        handles = [noted_layout(decoder.get_submodule(site.layer_path), layout)]

        def scaled(module: nn.Module, args: tuple[Any, ...]) -> Any:
            factor = scale(index) if scale is not None else None
            return None if factor is None else (args[0] * factor.to(args[0]), *args[1:])

        if scale is not None:
            handles.append(module.register_forward_pre_hook(scaled))
        if delta is None:
            return handles
        where = f"hook_maps at {site.path}"

        def added(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            x = first_tensor(args, kwargs)
            return add_first(output, ask(delta, index, x, site.out_features, where, layout, site.tokens_first))

        return [*handles, module.register_forward_hook(added, with_kwargs=True)]

    return place_hooks(decoder, sites, hook)


def low_rank(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(x A) B^T, where each row of a batch may have an A of its own; beams and return sequences repeat rows whole.

    Args:
        x: [rows, tokens, in].
        a: [batch or 1, in, rank].
        b: [out, rank].

    Returns: [rows, tokens, out].
    Raises: ShapeError if rows are no multiple of batch. Cost: 2 * rank * (in + out) FLOPs a token.
    """
    batch = a.shape[0]
    if x.shape[0] % batch:
        raise ShapeError(f"low_rank: {x.shape[0]} rows of text for {batch} rows of A; rows must be a multiple of it")
    read = torch.matmul(x.reshape(batch, -1, x.shape[-1]), a.to(x))
    return torch.matmul(read, b.to(x).mT).reshape(*x.shape[:-1], b.shape[0])
