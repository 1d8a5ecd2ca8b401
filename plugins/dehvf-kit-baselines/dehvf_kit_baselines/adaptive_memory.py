"""ADEM-VL's memory: attention without parameters in every FFN, its smallest scores dropped.

Source: ADEM-VL, arXiv:2410.17779 (Hao840/ADEM-VL cec09b8). Both sides pass SiLU, not their product, so DEHVF's factored form does
not apply; keys and values are built once, the same for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dehvf_kit import ffn_sites, hook_ffns
from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, Cost, DecoderComponent, Readout, ShapeError
from dehvf_kit.backbones.ffn.memory_hooks import FfnHooks


class AdaptiveMemoryConfig(ComponentConfig):
    """FFN(x) + output_scale * drop(SiLU(x) SiLU(K)^T) V, K = v + p_K, V = v + p_V; a token's smallest scores are dropped."""

    role: ClassVar[str] = "injector"
    takes: ClassVar[tuple[str, ...]] = (
        "codes?: batch layer patch code",
        "readout?: code decoder_hidden",
        "position_keys: slot decoder_hidden",
        "position_values: slot decoder_hidden",
        "has_image?: batch",
    )
    attaches: ClassVar[str] = "decoder"
    strength: ClassVar[str] = "output_scale"
    type: Literal["adaptive_memory"] = "adaptive_memory"
    visual_scale: float = Field(0.01, gt=0, description="scale of the projected image")
    output_scale: float = Field(0.1, gt=0, description="scale of what the memory adds to the FFN")
    drop: float = Field(0.1, ge=0, lt=1, description="part of a token's scores that is set to zero, the smallest")

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        if "codes" not in context.wires or "readout" not in context.wires:
            raise ConfigMismatchError("needs an image's codes and readout; add a projector", "inputs")
        slots, patches = context.size("slot"), context.axes.get("patch")
        if context.axes.get("layer") not in (None, 1):
            raise ConfigMismatchError("reads one vision layer; use a reader of type grids or patch_tokens", "inputs")
        if patches is not None and patches != slots:
            raise ConfigMismatchError(
                f"{patches} tokens of an image for {slots} slots; set the position table's num_slots to {patches}"
            )
        return {}

    def cost(self, context: BuildContext) -> Cost:
        hidden, slots, code = context.decoder.hidden_size, context.size("slot"), context.axes.get("code") or 0
        return Cost(per_image=2 * slots * code * hidden, per_token=context.decoder.num_layers * 4 * hidden * slots)

    def build(self, context: BuildContext) -> AdaptiveMemory:
        return AdaptiveMemory(self.visual_scale, self.output_scale, self.drop)


class AdaptiveMemory(DecoderComponent):
    """forward: codes [batch, 1, slot, code], a readout, tables [slot, hidden], has_image [batch] -> (SiLU(K), V),
    each [batch or 1, slot, hidden].

    Cost: 4 * slot * hidden FLOPs a token and layer. Raises: ShapeError for rows that are no multiple of the batch, or another
    number of patches than slots.
    """

    def __init__(self, visual_scale: float = 0.01, output_scale: float = 0.1, drop: float = 0.1) -> None:
        super().__init__()
        self.visual_scale, self.output_scale, self.drop = visual_scale, output_scale, drop

    def hook(self, decoder: nn.Module) -> Iterator[FfnHooks]:
        """Hook every FFN of the decoder. Raises: DecoderError if it has none."""
        yield hook_ffns(decoder, ffn_sites(decoder), self._delta)

    def forward(
        self,
        position_keys: Tensor,
        position_values: Tensor,
        codes: Tensor | None = None,
        readout: Readout | None = None,
        has_image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        keys, values = position_keys[None], position_values[None]
        if codes is not None and readout is not None:
            visual = self.visual_scale * F.linear(readout.activation(codes), readout.weight, readout.bias).flatten(1, 2)
            if visual.shape[1] != keys.shape[1]:
                raise ShapeError(f"{visual.shape[1]} tokens of an image for {keys.shape[1]} memory slots; they must be as many")
            visual = visual if has_image is None else visual.where(has_image.to(visual.device)[:, None, None], 0.0)
            keys, values = keys + visual, values + visual
        return F.silu(keys), values

    def _delta(self, index: int, x: Tensor) -> Tensor | None:
        if self.memory is None:
            return None
        keys, values = (tensor.to(x) for tensor in self.memory)
        batch = keys.shape[0]
        if x.shape[0] % batch:
            raise ShapeError(f"{x.shape[0]} rows of text for {batch} samples (rows may only be repeated whole, as beams are)")
        scores = F.silu(x.reshape(batch, -1, x.shape[-1])) @ keys.mT
        dropped = int(self.drop * scores.shape[-1])
        if dropped:
            least = scores.detach().kthvalue(dropped + 1, dim=-1, keepdim=True).values
            scores = scores.masked_fill(scores < least, 0.0)
        return (self.output_scale * (scores @ values)).reshape(x.shape)
