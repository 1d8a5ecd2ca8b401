"""LLaMA-Adapter: learned prompts that the text attends to in the top layers, behind a gate that starts closed.

Source: LLaMA-Adapter, arXiv:2303.16199. Its ScienceQA code was never released; what its paper leaves open is marked choice.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from dehvf_kit.api import (
    BuildContext,
    ComponentConfig,
    ConfigMismatchError,
    Cost,
    DecoderComponent,
    DecoderError,
    Readout,
    ShapeError,
)
from dehvf_kit.backbones.decoder import PROJECTIONS, attention_sites
from dehvf_kit.errors import listing
from dehvf_kit_baselines.llama_attention import needs_llama_attention
from dehvf_kit_baselines.peft_tuner import NAME

NORMS = ("q_norm", "k_norm")
"""Norms of queries and keys before the rotation (Qwen3, Gemma 3, OLMo 2), which the prompts' keys pass too."""
GATE = "gate_proj"
"""A gate of the decoder's own on its attention's output (AFMoE); what the prompts add comes after it."""


class GatedPrefixConfig(ComponentConfig):
    """attention(x) + scale * tanh(gate) * softmax(q (Wk P)^T / sqrt(d)) Wv P in the top layers.

    An image's token is added to every row of P, or as many tokens as P has, row by row (LLaMA-Adapter V2).
    """

    role: ClassVar[str] = "decoder_adapter"
    takes: ClassVar[tuple[str, ...]] = (
        "codes?: batch layer patch code",
        "readout?: code decoder_hidden",
        "tokens?: batch layer patch decoder_hidden",
        "has_image?: batch",
    )
    attaches: ClassVar[str] = "decoder"
    strength: ClassVar[str] = "scale"
    counts_positions: ClassVar[bool] = True  # queries are rotated, the prompts' keys are not
    type: Literal["gated_prefix"] = "gated_prefix"
    num_prompts: int = Field(10, ge=1, description="prompts in each layer")
    num_layers: int | None = Field(30, ge=1, description="layers that have prompts, from the top; null: all")
    scale: float = Field(1.0, gt=0, description="scale of what the prompts add, besides the gate")
    layer_scale: bool = Field(False, description="a learned factor of each layer too, 1 at the start (V2 with LoRA)")

    def top(self, context: BuildContext) -> int:
        """How many layers have prompts."""
        return context.decoder.num_layers if self.num_layers is None else self.num_layers

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        needs_llama_attention(context.decoder)
        if self.top(context) > context.decoder.num_layers:
            most = context.decoder.num_layers
            raise ConfigMismatchError(f"prompts in {self.num_layers} layers of {most}; use {most} or fewer", "num_layers")
        if {"codes", "tokens"} & set(context.wires) and context.axes.get("patch") not in (None, 1, self.num_prompts):
            raise ConfigMismatchError(
                f"adds one image token to its {self.num_prompts} prompts, or one to each, but {context.axes['patch']} are "
                f"wired to it; use a reader of type global_tokens with num_tokens 1, or one that gives {self.num_prompts}",
                "inputs",
            )
        return {}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        top, spec = self.top(context), context.decoder
        counts = {"prompts": top * self.num_prompts * spec.hidden_size, "gates": top * spec.num_heads}
        return {**counts, "scales": top} if self.layer_scale else counts

    def cost(self, context: BuildContext) -> Cost:
        top, spec = self.top(context), context.decoder
        projected = 4 * self.num_prompts * spec.hidden_size * spec.num_key_value_heads * spec.head_dim
        read = context.axes.get("code") or 0
        attended = 4 * self.num_prompts * spec.num_heads * spec.head_dim
        return Cost(per_image=top * projected + 2 * read * spec.hidden_size, per_token=top * attended)

    def build(self, context: BuildContext) -> GatedPrefix:
        spec = context.decoder
        top = self.top(context)
        sizes = spec.num_layers, top, self.num_prompts, spec.hidden_size, spec.num_heads
        return GatedPrefix(*sizes, self.scale, self.layer_scale)


class Prefix:
    """A batch's prompts as keys and values of each layer [batch or 1, key head, prompt, head_dim]."""

    def __init__(self, keys_values: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.keys_values = keys_values


class GatedPrefix(DecoderComponent):
    """forward: codes [batch, 1, 1 or prompt, code] and a readout, or tokens [batch, 1, 1 or prompt, hidden]; has_image [batch]
    -> the batch's `Prefix`.

    The prompts' keys and values come from the decoder's own frozen maps, without rotation; queries are the text's, rotated.
    Cost: 4 * prompt * attention width FLOPs a token and layer, and the prompts' keys and values once a batch.
    Raises: ShapeError for rows that are no multiple of the batch.
    """

    def __init__(
        self,
        num_layers: int,
        top: int,
        num_prompts: int,
        hidden_size: int,
        num_heads: int,
        scale: float = 1.0,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(top, num_prompts, hidden_size))
        self.gates = nn.Parameter(torch.zeros(top, num_heads))
        self.scales = nn.Parameter(torch.ones(top)) if layer_scale else None
        self.num_layers, self.first, self.scale = num_layers, num_layers - top, scale
        self._attention: dict[int, _Attention] = {}

    def hook(self, decoder: nn.Module) -> Iterator[_Attention]:
        """Hook the attention of the top layers. Raises: DecoderError for a decoder that is not of LLaMA's kind."""
        sites = attention_sites(decoder)
        if len(sites) != self.num_layers:
            raise DecoderError(f"prompts built for {self.num_layers} layers; the decoder has {len(sites)}")
        found = {layer: _Attention(decoder.get_submodule(site.path)) for layer, site in enumerate(sites)}
        self._attention = {layer: one for layer, one in found.items() if layer >= self.first}
        for layer, attention in self._attention.items():
            attention.hook(lambda queries, layer=layer: self._added(layer, queries))
            yield attention

    def forward(
        self,
        codes: Tensor | None = None,
        readout: Readout | None = None,
        tokens: Tensor | None = None,
        has_image: Tensor | None = None,
    ) -> Prefix:
        prompts = self.prompts[:, None]
        if tokens is None and codes is not None and readout is not None:
            tokens = F.linear(readout.activation(codes), readout.weight, readout.bias)
        if tokens is not None:
            token = tokens.flatten(1, 2)
            if has_image is not None:
                token = token * has_image.to(token)[:, None, None]
            prompts = prompts + token[None]
        return Prefix({layer: attention.keys_values(prompts[layer - self.first]) for layer, attention in self._attention.items()})

    def _added(self, layer: int, queries: Tensor) -> Tensor | None:
        """scale * tanh(gate) * attention to the prompts. Shapes: queries [rows, head, token, head_dim] -> the same."""
        if self.memory is None:
            return None
        keys, values = self.memory.keys_values[layer]
        rows, heads, tokens, width = queries.shape
        batch, shared = keys.shape[:2]
        if rows % batch:
            raise ShapeError(f"{rows} rows of text for {batch} samples (rows may only be repeated whole, as beams are)")
        grouped = queries.reshape(batch, rows // batch, shared, heads // shared, tokens, width)
        grouped = grouped.permute(0, 2, 1, 3, 4, 5).reshape(batch, shared, -1, width)
        found = F.scaled_dot_product_attention(grouped, keys, values, scale=self._attention[layer].scaling)
        found = found.view(batch, shared, rows // batch, heads // shared, tokens, width)
        found = found.permute(0, 2, 1, 3, 4, 5).reshape(queries.shape)
        gate = self.scale * self.gates[layer - self.first].tanh()
        gate = (gate if self.scales is None else gate * self.scales[layer - self.first]).to(found.dtype)
        return gate[None, :, None, None] * found


class _Attention:
    """One layer's attention: its queries as they are after rotation, and its output before the output map.

    Raises: DecoderError where the queries pass something else than a linear map, a norm and a rotation.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.rotate = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
        others = [
            name
            for name, child in module.named_children()
            if name not in (*PROJECTIONS, GATE) and (name not in NORMS if _has_weights(child) else "norm" in name)
        ]
        source = ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))
        if self.rotate is None or others or _scales(source):
            without = "it knows no apply_rotary_pos_emb" if self.rotate is None else "it scales its queries"
            without = f"it has {listing(others)} besides" if others else without
            raise DecoderError(
                f"{type(module).__name__}: prompts need attention of LLaMA's kind, {', '.join(PROJECTIONS)} and rotary "
                f"positions; {without}"
            )
        self._rotates = _rotates_if(module, source)
        self.head_dim: int = module.head_dim
        self.num_heads: int = module.q_proj.out_features // module.head_dim
        self.scaling = float(getattr(module, "scaling", self.head_dim**-0.5))
        self._queries: Tensor | None = None
        self._rotation: tuple[Tensor, Tensor] | None = None
        self._handles: list[RemovableHandle] = []

    def keys_values(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts [batch, prompt, hidden] -> keys and values [batch, key head, prompt, head_dim], not rotated."""
        key, value = frozen(self.module.k_proj), frozen(self.module.v_proj)
        prompts = prompts.to(key.weight.device, key.weight.dtype)
        keys = self._normed(key(prompts)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return keys, value(prompts).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _normed(self, keys: Tensor) -> Tensor:
        """Keys [batch, prompt, key head * head_dim] through the attention's own norm of each head or of all, where it has one."""
        norm = getattr(self.module, "k_norm", None)
        if norm is None:
            return keys
        each_head = next(iter(norm.parameters())).numel() == self.head_dim
        return norm(keys.unflatten(-1, (-1, self.head_dim))).flatten(-2) if each_head else norm(keys)

    def hook(self, added: Any) -> None:
        """Add `added(rotated queries)` to the attention's output, before the output map."""

        def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._rotation = kwargs.get("position_embeddings", args[1] if len(args) > 1 else None)

        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if output.ndim == 4 and output.shape[1] == self.num_heads and (output.shape[2] == 1 or not args[0].is_contiguous()):
                output = output.transpose(1, 2)  # normed with heads first, as in Gemma 3
            self._queries = output.flatten(2)

        def finish(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            queries, rotation, self._queries, self._rotation = self._queries, self._rotation, None, None
            more = added(self._rotated(queries, rotation))
            return None if more is None else (args[0] + more.transpose(1, 2).reshape(args[0].shape), *args[1:])

        self._handles = [
            self.module.register_forward_pre_hook(start, with_kwargs=True),
            (getattr(self.module, "q_norm", None) or self.module.q_proj).register_forward_hook(keep),
            self.module.o_proj.register_forward_pre_hook(finish),
        ]

    def remove(self) -> None:
        """Take the hooks away."""
        while self._handles:
            self._handles.pop().remove()

    def _rotated(self, queries: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """[rows, token, head * head_dim] -> [rows, head, token, head_dim], rotated as the decoder does it.

        Raises: DecoderError where no rotation came with the states.
        """
        heads = queries.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if not eval(self._rotates, {"self": self.module, "position_embeddings": rotation}):
            return heads
        if rotation is None or rotation[0].shape[-1] > self.head_dim:
            raise DecoderError(f"{type(self.module).__name__}: prompts need rotary positions, given as position_embeddings")
        turned, still = heads[..., : rotation[0].shape[-1]], heads[..., rotation[0].shape[-1] :]
        try:
            return torch.cat([self.rotate(turned, turned, *rotation)[0], still], -1)  # the first part of each head, or all of it
        except RuntimeError as error:  # a rotation that comes in another form (gpt_oss)
            raise DecoderError(f"{type(self.module).__name__}: prompts need rotary positions as LLaMA's: {error}") from error


def frozen(module: Any) -> Any:
    """The decoder's own map, where a `peft` node put its layer in the map's place."""
    return module.base_layer if NAME in getattr(module, "active_adapters", ()) else module


def _rotates_if(module: nn.Module, source: ast.AST) -> str:
    """The condition under which an attention rotates its queries, as its source has it: some families do in some layers only.

    Raises: DecoderError for one that depends on more than the module and whether positions are given.
    """
    branches = [branch for branch in ast.walk(source) if isinstance(branch, ast.If) and _rotations(branch)]
    if sum(map(_rotations, branches)) < _rotations(source):  # a call outside of them
        return "True"
    known = {name.id for branch in branches for name in ast.walk(branch.test) if isinstance(name, ast.Name)}
    if len(branches) != 1 or any(map(_rotations, branches[0].orelse)) or not known <= {"self", "position_embeddings"}:
        conditions = listing(ast.unparse(branch.test) for branch in branches)
        raise DecoderError(f"{type(module).__name__}: prompts need to know where it rotates its queries, which is if {conditions}")
    return ast.unparse(branches[0].test)


def _scales(source: ast.AST) -> bool:
    """Whether queries are multiplied by more than the softmax's scale, as by what depends on their position (Ministral 3)."""
    assigned = [part for part in ast.walk(source) if isinstance(part, ast.Assign)]
    values = [part.value for part in assigned if ast.unparse(part.targets[0]) == "query_states"]
    return any(isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mult) for value in values for part in ast.walk(value))


def _rotations(tree: ast.AST) -> int:
    """Calls of `apply_rotary_pos_emb`."""
    return sum(isinstance(part, ast.Call) and getattr(part.func, "id", "") == "apply_rotary_pos_emb" for part in ast.walk(tree))


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
