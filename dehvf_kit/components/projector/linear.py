"""A projector of one linear map, vision width to decoder width."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from dehvf_kit.api.config import BuildContext, ComponentConfig
from dehvf_kit.api.shapes import Readout
from dehvf_kit.components.base import product_dtype
from dehvf_kit.ops.activations import ACTIVATIONS


class LinearProjectorConfig(ComponentConfig):
    """P(u) = W u + b, with no bottleneck; Xavier weights, zero bias. The codes are the patches themselves."""

    role: ClassVar[str] = "projector"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("codes: batch layer patch code", "readout: code decoder_hidden")
    type: Literal["linear"] = "linear"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"code": context.size("vision_hidden")}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return {"fc": (context.size("vision_hidden") + 1) * context.decoder.hidden_size}

    def build(self, context: BuildContext) -> LinearProjector:
        return LinearProjector(context.size("vision_hidden"), context.decoder.hidden_size)


class LinearProjector(nn.Module):
    """Shapes: patches [batch, layer, patch, vision_hidden] -> the same as codes, and a `Readout` holding the whole map.

    Cost: none here; the map is applied by the reader of the codes. Source: DEHVF, equation 10 ("one or more fully
    connected layers").
    """

    def __init__(self, vision_hidden_size: int, decoder_hidden_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(vision_hidden_size, decoder_hidden_size)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, patches: Tensor) -> tuple[Tensor, Readout]:
        return patches.to(product_dtype(self.fc.weight)), Readout(ACTIVATIONS["identity"], self.fc.weight, self.fc.bias)
