"""LLaMA-Adapter: learned prompts that the text attends to in the top layers, behind a gate that starts closed.

Source: LLaMA-Adapter, arXiv:2303.16199. Its ScienceQA code was never released; what its paper leaves open is marked choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

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
from dehvf_kit.backbones.decoder import attention_sites
from dehvf_kit.errors import listing
from dehvf_kit_baselines.attention_hooks import AttentionHook, needs_attention


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
    num_layers: int | Literal["all"] | None = Field(30, description="layers that have prompts, from the top, or all")
    scale: float = Field(1.0, gt=0, description="scale of what the prompts add, besides the gate")
    layer_scale: bool = Field(False, description="a learned factor of each layer too, 1 at the start (V2 with LoRA)")

    def top(self, context: BuildContext) -> int:
        """How many layers have prompts."""
        return self.num_layers if isinstance(self.num_layers, int) else context.decoder.num_layers

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        needs_attention(context.decoder)
        if not 1 <= self.top(context) <= (most := context.decoder.num_layers):
            raise ConfigMismatchError(f"prompts in {self.num_layers} layers of {most}; use 1 to {most}, or all", "num_layers")
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
        projected = 2 * self.num_prompts * spec.hidden_size * (spec.num_heads + 2 * spec.num_key_value_heads) * spec.head_dim
        read = context.axes.get("code") or 0
        attended = 4 * self.num_prompts * spec.num_heads * spec.head_dim
        return Cost(per_image=top * projected + 2 * read * spec.hidden_size, per_token=top * attended)

    def build(self, context: BuildContext) -> GatedPrefix:
        spec = context.decoder
        top = self.top(context)
        sizes = spec.num_layers, top, self.num_prompts, spec.hidden_size, spec.num_heads
        return GatedPrefix(*sizes, self.scale, self.layer_scale)


class Prefix:
    """A batch's prompts [layer, batch or 1, prompt, hidden]; keys and values made without gradients are kept for tokens to come."""

    def __init__(self, prompts: Tensor) -> None:
        self.prompts = prompts
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keys_values(self, place: int, attention: AttentionHook) -> tuple[Tensor, Tensor]:
        """Those of a layer, as its attention makes them: [batch or 1, key head, prompt, width]."""
        if torch.is_grad_enabled():
            return attention.keys_values(self.prompts[place])
        if place not in self._kept:
            self._kept[place] = attention.keys_values(self.prompts[place])
        return self._kept[place]


class GatedPrefix(DecoderComponent):
    """forward: codes [batch, 1, 1 or prompt, code] and a readout, or tokens [batch, 1, 1 or prompt, hidden]; has_image [batch]
    -> the batch's `Prefix`.

    The prompts' keys and values come from the decoder's own frozen attention, without rotation; queries are the text's, rotated.
    Cost: 4 * prompt * attention width FLOPs a token and layer, and the prompts' way to their keys and values once a batch.
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
        self._attention: list[AttentionHook] = []

    def hook(self, decoder: nn.Module) -> Iterator[AttentionHook]:
        """Hook the attention of the top layers. Raises: DecoderError for a decoder that has not one in each layer."""
        sites = attention_sites(decoder)
        if len(sites) != self.num_layers:
            raise DecoderError(f"prompts built for {self.num_layers} layers; the decoder has {len(sites)}")
        if heads := {site.num_heads for site in sites} - {self.gates.shape[1]}:
            raise DecoderError(f"gates built for {self.gates.shape[1]} heads; the decoder has layers with {listing(heads)}")
        self._attention = []
        for place, site in enumerate(sites[self.first :]):
            hook = AttentionHook(decoder.get_submodule(site.path), lambda q, scaling, place=place: self._added(place, q, scaling))
            self._attention.append(hook)
            yield hook

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
        return Prefix(prompts)

    def _added(self, place: int, queries: Tensor, scaling: float | None) -> Tensor | None:
        """scale * tanh(gate) * attention to the prompts. Shapes: queries [rows, head, token, width] -> [.., value width]."""
        if self.memory is None:
            return None
        keys, values = self.memory.keys_values(place, self._attention[place])
        rows, heads, tokens, width = queries.shape
        batch, shared = keys.shape[:2]
        if rows % batch:
            raise ShapeError(f"{rows} rows of text for {batch} samples (rows may only be repeated whole, as beams are)")
        grouped = queries.reshape(batch, rows // batch, shared, heads // shared, tokens, width)
        grouped = grouped.permute(0, 2, 1, 3, 4, 5).reshape(batch, shared, -1, width)
        found = F.scaled_dot_product_attention(grouped, keys, values, scale=scaling)
        found = found.view(batch, shared, rows // batch, heads // shared, tokens, -1)
        found = found.permute(0, 2, 1, 3, 4, 5).reshape(rows, heads, tokens, -1)
        gate = self.scale * self.gates[place].tanh()
        gate = (gate if self.scales is None else gate * self.scales[place]).to(found.dtype)
        return gate[None, :, None, None] * found
