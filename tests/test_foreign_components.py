"""A component of each role as a stranger writes it from plugins/README.md alone passes its contract."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from dehvf_kit import ffn_sites, hook_ffns, hook_layers, hook_maps, layer_sites, low_rank, map_sites
from dehvf_kit.api import BuildContext, ComponentConfig, DecoderComponent, GroupLayers, Readout, VisionComponent
from dehvf_kit.components.base import GrouperConfig
from dehvf_kit.testing import check_component

FUSED = "fused: batch decoder_layer kv patch code"
CODES = ("codes: batch layer patch code",)


class ParityGrouperConfig(GrouperConfig):
    """Even layers in one group, odd ones in the other."""

    type: Literal["foreign_parity"] = "foreign_parity"

    def members_of(self, num_layers: int) -> list[list[int]]:
        return [list(range(0, num_layers, 2)), list(range(1, num_layers, 2))]


class BareGrouperConfig(ComponentConfig):
    """All layers in one group, without the groupers' parent."""

    role: ClassVar[str] = "grouper"
    takes: ClassVar[tuple[str, ...]] = ("globals: batch layer vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = ("members: batch group member vision_hidden", "levels: group member")
    type: Literal["foreign_bare"] = "foreign_bare"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"group": 1, "member": context.size("layer")}

    def build(self, context: BuildContext) -> nn.Module:
        return BareGrouper(context.decoder.num_layers)


class BareGrouper(nn.Module):
    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers

    def forward(self, globals: Tensor) -> tuple[Tensor, GroupLayers]:
        index = torch.arange(globals.shape[1], device=globals.device)[None]
        rows = torch.arange(self.num_layers, device=globals.device)
        return globals[:, index], GroupLayers(index, index >= 0, 0 * rows, rows, self.num_layers, True)


class SineQueryConfig(ComponentConfig):
    """The sine of a layer's number, with learned phases."""

    role: ClassVar[str] = "layer_query"
    gives: ClassVar[tuple[str, ...]] = ("queries: decoder_layer kv query",)
    type: Literal["foreign_sine"] = "foreign_sine"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"kv": 2, "query": 8}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return {"phases": 16}

    def build(self, context: BuildContext) -> nn.Module:
        return SineQuery(context.decoder.num_layers)


class SineQuery(nn.Module):
    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.num_layers, self.phases = num_layers, nn.Parameter(torch.randn(2, 8))

    def forward(self) -> Tensor:
        return torch.sin(torch.arange(self.num_layers).to(self.phases)[:, None, None] + self.phases)


class NormedProjectorConfig(ComponentConfig):
    """A linear map of the normalised patches, and one to the decoder's width."""

    role: ClassVar[str] = "projector"
    takes: ClassVar[tuple[str, ...]] = ("patches: batch layer patch vision_hidden",)
    gives: ClassVar[tuple[str, ...]] = (*CODES, "readout: code decoder_hidden")
    type: Literal["foreign_normed"] = "foreign_normed"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"code": 6}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        vision, hidden = context.size("vision_hidden"), context.decoder.hidden_size
        return {"norm": 2 * vision, "down": 6 * vision, "up": 7 * hidden}

    def build(self, context: BuildContext) -> nn.Module:
        return NormedProjector(context.size("vision_hidden"), context.decoder.hidden_size)


class NormedProjector(nn.Module):
    def __init__(self, vision: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.LayerNorm(vision), nn.Linear(vision, 6, bias=False))
        self.up = nn.Linear(6, hidden)

    def forward(self, patches: Tensor) -> tuple[Tensor, Readout]:
        return self.down(patches), Readout(torch.tanh, self.up.weight, self.up.bias)


class RankOneConfig(ComponentConfig):
    """Position vectors of rank one."""

    role: ClassVar[str] = "position"
    gives: ClassVar[tuple[str, ...]] = ("position_keys: slot decoder_hidden", "position_values: slot decoder_hidden")
    type: Literal["foreign_rank_one"] = "foreign_rank_one"

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        return {"slot": 64}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return {"slots": 128, "hidden": 2 * context.decoder.hidden_size}

    def build(self, context: BuildContext) -> nn.Module:
        return RankOne(context.decoder.hidden_size)


class RankOne(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.slots, self.hidden = nn.Parameter(torch.randn(2, 64, 1)), nn.Parameter(0.1 * torch.randn(2, 1, hidden))

    def forward(self) -> tuple[Tensor, Tensor]:
        keys, values = self.slots * self.hidden
        return keys, values


class NormScaleConfig(ComponentConfig):
    """A learned scale behind every norm of the encoder's width."""

    role: ClassVar[str] = "vision_adapter"
    takes: ClassVar[tuple[str, ...]] = ("tower: layer vision_hidden",)
    attaches: ClassVar[str] = "vision"
    type: Literal["foreign_norm_scale"] = "foreign_norm_scale"

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return {"scale": context.size("vision_hidden")}

    def build(self, context: BuildContext) -> nn.Module:
        return NormScale(context.size("vision_hidden"))


class NormScale(VisionComponent):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def hook(self, tower: nn.Module) -> Any:
        for module in tower.modules():
            if isinstance(module, nn.LayerNorm) and module.normalized_shape == (len(self.scale),):
                yield module.register_forward_hook(lambda module, args, output: output * self.scale.to(output))


class ShiftConfig(ComponentConfig):
    """W (mean code of the image), added at one kind of place in every layer."""

    role: ClassVar[str] = "decoder_adapter"
    takes: ClassVar[tuple[str, ...]] = (*CODES, "has_image?: batch")
    attaches: ClassVar[str] = "decoder"
    type: Literal["foreign_shift"] = "foreign_shift"
    where: Literal["ffns", "before", "after", "maps"] = "ffns"

    def num_params(self, context: BuildContext) -> dict[str, int]:
        return {"up": context.decoder.hidden_size * context.size("code")}

    def build(self, context: BuildContext) -> nn.Module:
        return Shift(self.where, context.size("code"), context.decoder.hidden_size)


class Shift(DecoderComponent):
    def __init__(self, where: Any, code: int, hidden: int) -> None:
        super().__init__()
        self.where, self.up = where, nn.Linear(code, hidden, bias=False)

    def hook(self, decoder: nn.Module) -> Any:
        if self.where == "ffns":
            yield hook_ffns(decoder, ffn_sites(decoder), self.delta)
        elif self.where == "maps":
            yield hook_maps(decoder, [site for site in map_sites(decoder) if site.role == "query"], self.weight)
        else:
            yield hook_layers(decoder, layer_sites(decoder), self.where, self.delta)

    def forward(self, codes: Tensor, has_image: Tensor | None = None) -> Tensor:
        shift = self.up(codes.mean((1, 2)))
        return shift if has_image is None else shift * has_image[:, None]

    def delta(self, index: int, x: Tensor) -> Tensor | None:
        if self.memory is None:
            return None
        return self.memory.repeat_interleave(len(x) // len(self.memory), 0)[:, None].to(x).expand_as(x)

    def weight(self, index: int, x: Tensor) -> Tensor | None:
        if self.memory is None:
            return None
        return low_rank(x, self.memory[..., None], torch.ones(x.shape[-1], 1))


GROUPS = {"grouper": {"type": "contiguous", "num_groups": 2}}
CODED = {"projector": {"type": "bottleneck_mlp", "bottleneck_size": 4}}
MIX = {"fuser": {"type": "mean"}}
BLOCKS = {"fuser": {"type": "cross_attention", "hidden_size": 8, "num_heads": 2, "num_blocks": 1, "intermediate_size": 8}}
SLOTS = {"position": {"type": "learned", "num_slots": 64}}
MEMORY = {"injector": {"type": "ffn_memory", "dropout": 0}}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("config", "settings", "graph"),
    [
        (ParityGrouperConfig, {}, CODED | MIX | SLOTS | MEMORY),
        (BareGrouperConfig, {}, CODED | MIX | SLOTS | MEMORY),
        (SineQueryConfig, {}, GROUPS | CODED | BLOCKS | SLOTS | MEMORY),
        (NormedProjectorConfig, {}, GROUPS | MIX | SLOTS | MEMORY),
        (RankOneConfig, {}, GROUPS | CODED | MIX | MEMORY),
        (NormScaleConfig, {}, GROUPS | CODED | MIX | SLOTS | MEMORY),
        *((ShiftConfig, {"where": where}, None) for where in ("ffns", "before", "after", "maps")),
    ],
)
def test_its_contract(config: type[ComponentConfig], settings: dict[str, Any], graph: dict[str, Any] | None) -> None:
    check_component(config, settings, **({} if graph is None else {"graph": graph}))
