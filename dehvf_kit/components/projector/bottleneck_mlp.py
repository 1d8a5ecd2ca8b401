"""The projector from vision width to decoder width through a narrow bottleneck.

Source: DEHVF, equation 10; MemVP's projector.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from dehvf_kit.api.config import MAX_SIZE, BuildContext, ComponentConfig
from dehvf_kit.api.shapes import KV, Cost, Readout, Unprojected
from dehvf_kit.components.base import product_dtype
from dehvf_kit.ops.activations import ACTIVATIONS, ActivationName


class BottleneckMlpProjectorConfig(ComponentConfig):
    """P(u) = fc2(SiLU(fc1(u))), vision width -> bottleneck -> decoder width, shared by all layers; Xavier weights, zero biases."""

    role: ClassVar[str] = "projector"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("codes: batch layer patch code", "readout: code decoder_hidden")
    type: Literal["bottleneck_mlp"] = "bottleneck_mlp"
    bottleneck_size: int = Field(128, ge=1, le=MAX_SIZE, description="width between the two linear maps")
    activation: ActivationName = "silu"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        late = {"unprojected": context.size("vision_hidden")} if self.mixes_first(context) else {}
        return {"code": self.bottleneck_size, **late}

    def mixes_first(self, context: BuildContext) -> bool:
        """Whether fc1 after the mix costs fewer FLOPs than before it: more vision layers than decoder layers need."""
        vision, code, layers = context.size("vision_hidden"), self.bottleneck_size, context.size("layer")
        mixes = len(KV) * context.decoder.num_layers
        return mixes * (layers * vision + vision * code) < layers * code * (vision + mixes)

    def num_params(self, context: BuildContext) -> dict[str, int]:
        vision, hidden = context.size("vision_hidden"), context.decoder.hidden_size
        return {"fc1": vision * self.bottleneck_size + self.bottleneck_size, "fc2": self.bottleneck_size * hidden + hidden}

    def cost(self, context: BuildContext) -> Cost:
        patches = context.axes.get("patch") or 0
        layers = 0 if self.mixes_first(context) else context.size("layer")
        return Cost(per_image=2 * layers * patches * context.size("vision_hidden") * self.bottleneck_size)

    def build(self, context: BuildContext) -> BottleneckMlpProjector:
        return BottleneckMlpProjector(
            context.size("vision_hidden"),
            bottleneck_size=self.bottleneck_size,
            decoder_hidden_size=context.decoder.hidden_size,
            activation_name=self.activation,
            mix_first=self.mixes_first(context),
        )


class BottleneckMlpProjector(nn.Module):
    """fc1 once per vision layer; activation and fc2 are left to the reader of the codes.

    Since fc1 is linear and fusion weights sum to one, fc1(sum a_i V_i) = sum a_i fc1(V_i): mixing the narrow codes is
    exact and replaces one fc1 per decoder layer and kv by one per vision layer. Where there are fewer of the former
    (`mix_first`), fc1 is left to the fuser, as `Unprojected`.
    Shapes: patches [batch, layer, patch, vision_hidden] -> codes [batch, layer, patch, code] and a `Readout`.
    Initialisation: Xavier-uniform weights, zero biases, as MemVP's projector.
    Cost: 2 * layer * patch * vision_hidden * code FLOPs an image, none with `mix_first`. Source: DEHVF, equation 10.
    """

    def __init__(
        self,
        vision_hidden_size: int,
        bottleneck_size: int,
        decoder_hidden_size: int,
        activation_name: str = "silu",
        mix_first: bool = False,
    ) -> None:
        super().__init__()
        self.mix_first = mix_first
        self.fc1 = nn.Linear(vision_hidden_size, bottleneck_size)
        self.fc2 = nn.Linear(bottleneck_size, decoder_hidden_size)
        self.activation = ACTIVATIONS[activation_name]
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, patches: Tensor) -> tuple[Tensor | Unprojected, Readout]:
        patches = patches.to(product_dtype(self.fc1.weight))
        codes = Unprojected(patches, self.fc1) if self.mix_first else self.fc1(patches)
        return codes, Readout(self.activation, self.fc2.weight, self.fc2.bias)

    def project(self, patches: Tensor) -> Tensor:
        """P applied whole: [..., vision_hidden] -> [..., decoder_hidden]."""
        return self.fc2(self.activation(self.fc1(patches.to(product_dtype(self.fc1.weight)))))
