"""What a plugin imports.

- `ComponentConfig`, `Settings`, `BuildContext`, `ConfigMismatchError`: a component's config class and what it is wired to.
- `DecoderComponent`, `VisionComponent`: parents of modules that place hooks on a decoder or an encoder.
- `VisionSpec`, `DecoderSpec`, `Readout`, `Unprojected`, `Cost` and their like: what travels between towers and components.
- `hookimpl`, `Register`, `RegisterSource`, `RegisterCommand`: the hooks and what each is given.
- `Registry`, `Source`: where registered classes and base models are found.
- `BaselineCost`, `CostFormula`, `TowerSizes`: what a formula of `dehvf-kit plan` takes and returns.
- `DehvfError` and its children: errors whose message is shown to the user without a traceback.

The parents of modules import torch and load on first use, so that a plugin's entry module costs no more than the hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dehvf_kit.api.config import BuildContext, ComponentConfig, ConfigMismatchError, Misfit, Settings
from dehvf_kit.api.cost_formulas import BaselineCost, CostFormula, TowerSizes
from dehvf_kit.api.hookspecs import Register, RegisterCommand, RegisterSource, hookimpl
from dehvf_kit.api.registry import Registry, Source, plugin_code
from dehvf_kit.api.shapes import KV, Cost, DecoderSpec, GroupLayers, Readout, Unprojected, VisionSpec
from dehvf_kit.errors import (
    AdapterError,
    DataError,
    DecoderError,
    DehvfError,
    ImageError,
    PluginError,
    RecipeError,
    ShapeError,
    TrainingError,
    VisionError,
)

if TYPE_CHECKING:
    from dehvf_kit.api.components import DecoderComponent, VisionComponent

__all__ = [
    "KV",
    "AdapterError",
    "BaselineCost",
    "BuildContext",
    "ComponentConfig",
    "ConfigMismatchError",
    "Cost",
    "CostFormula",
    "DataError",
    "DecoderComponent",
    "DecoderError",
    "DecoderSpec",
    "DehvfError",
    "GroupLayers",
    "ImageError",
    "Misfit",
    "PluginError",
    "Readout",
    "RecipeError",
    "Register",
    "RegisterCommand",
    "RegisterSource",
    "Registry",
    "Settings",
    "ShapeError",
    "Source",
    "TowerSizes",
    "TrainingError",
    "Unprojected",
    "VisionComponent",
    "VisionError",
    "VisionSpec",
    "hookimpl",
    "plugin_code",
]


def __getattr__(name: str) -> Any:
    if name not in ("DecoderComponent", "VisionComponent"):
        raise AttributeError(f"module 'dehvf_kit.api' has no attribute '{name}'")
    from dehvf_kit.api import components

    return getattr(components, name)
