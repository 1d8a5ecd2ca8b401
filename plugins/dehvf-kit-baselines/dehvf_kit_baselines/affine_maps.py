"""A bias and a scale at a decoder's linear maps: y = W(s * x) + b, with s = 1 and b = 0 at the start.

Source: LLaMA-Adapter V2, arXiv:2304.15010 (OpenGVLab/LLaMA-Adapter 521a09d): its multimodal model trains biases on all maps but key
and value, its 65B chat model scales and biases on all seven. It trains the norms too: a node `peft` with method ln_tuning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dehvf_kit import hook_maps, map_sites
from dehvf_kit.api import BuildContext, ComponentConfig, ConfigMismatchError, Cost, DecoderComponent, DecoderError
from dehvf_kit.backbones.ffn.memory_hooks import FfnHooks
from dehvf_kit.backbones.map_hooks import role_of
from dehvf_kit.errors import listing
from dehvf_kit_baselines.decoder_outline import in_layer, modules_of


class AffineMapsConfig(ComponentConfig):
    """W(s * x) + b at maps of every layer, named by role; s starts at 1, b at 0, so that the start is the decoder itself."""

    role: ClassVar[str] = "decoder_adapter"
    attaches: ClassVar[str] = "decoder"
    type: Literal["affine_maps"] = "affine_maps"
    biases: tuple[str, ...] = Field(("query", "output", "gate", "up", "down"), description="roles of maps that get a bias")
    scales: tuple[str, ...] = Field((), description="roles of maps whose input is scaled")

    def sizes(self, context: BuildContext) -> dict[str, tuple[str, tuple[int, int]]]:
        """Path -> role and (in, out) of every map that has one or both."""
        wanted, modules = {*self.biases, *self.scales}, modules_of(context.decoder)
        maps = {path: linear for path, (_, linear, _) in modules.items() if linear is not None and in_layer(path)}
        return {path: (role_of(path), linear) for path, linear in maps.items() if role_of(path) in wanted}

    def resolve(self, context: BuildContext) -> dict[str, int | None]:
        roles = {
            role_of(path) for path, (_, linear, _) in modules_of(context.decoder).items() if linear is not None and in_layer(path)
        }
        for field in ("biases", "scales"):
            if unknown := [role for role in getattr(self, field) if role not in roles]:
                raise ConfigMismatchError(f"no map of a layer is {listing(unknown)}; it has {listing(sorted(roles))}", field)
        if not {*self.biases, *self.scales}:
            raise ConfigMismatchError("neither biases nor scales; name a role in one of them", "biases")
        return {}

    def num_params(self, context: BuildContext) -> dict[str, int]:
        sizes = self.sizes(context).values()
        return {
            "biases": sum(outer for role, (_, outer) in sizes if role in self.biases),
            "scales": sum(inner for role, (inner, _) in sizes if role in self.scales),
        }

    def cost(self, context: BuildContext) -> Cost:
        return Cost(per_token=sum(self.num_params(context).values()))

    def build(self, context: BuildContext) -> AffineMaps:
        return AffineMaps(self.sizes(context), self.biases, self.scales)


class AffineMaps(DecoderComponent):
    """A bias [out] and a scale [in] for each map, None where its role has none. One addition, one product a number of a token."""

    def __init__(self, sizes: dict[str, tuple[str, tuple[int, int]]], biases: tuple[str, ...], scales: tuple[str, ...]) -> None:
        super().__init__()
        self.paths = list(sizes)
        self.biases = nn.ParameterList(torch.zeros(outer) for role, (_, outer) in sizes.values() if role in biases)
        self.scales = nn.ParameterList(torch.ones(inner) for role, (inner, _) in sizes.values() if role in scales)
        self._bias = self._numbers(sizes, biases)
        self._scale = self._numbers(sizes, scales)

    def _numbers(self, sizes: dict[str, tuple[str, tuple[int, int]]], roles: tuple[str, ...]) -> dict[str, int]:
        return {path: number for number, path in enumerate(path for path, (role, _) in sizes.items() if role in roles)}

    def hook(self, decoder: nn.Module) -> Iterator[FfnHooks]:
        """Hook the maps. Raises: DecoderError for a decoder that has not those the component was built for."""
        found = {site.path: site for site in map_sites(decoder)}
        missing = [path for path in self.paths if path not in found]
        if missing:
            raise DecoderError(f"{type(decoder).__name__}: has no {listing(missing)}, where biases and scales were built to stand")
        yield hook_maps(decoder, [found[path] for path in self.paths], self._delta, self._factor)

    def _delta(self, index: int, x: Tensor) -> Tensor | None:
        number = self._bias.get(self.paths[index])
        return None if number is None else self.biases[number].to(x).expand(*x.shape[:-1], -1)

    def _factor(self, index: int) -> Tensor | None:
        number = self._scale.get(self.paths[index])
        return None if number is None else self.scales[number]
