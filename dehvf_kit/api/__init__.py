"""What a plugin imports.

- `ComponentConfig`, `Settings`, `BuildContext`, `ConfigMismatchError`: a component's config class and what it is wired to.
- `DecoderComponent`, `VisionComponent`: parents of modules that place hooks on a decoder or an encoder.
- `VisionSpec`, `DecoderSpec`, `Readout`, `Unprojected`, `Cost` and their like: what travels between towers and components.
- `hookimpl`, `Register`, `RegisterSource`, `RegisterCommand`: the hooks and what each is given.
- `Registry`, `Source`: where registered classes and base models are found.
- `BaselineCost`, `CostFormula`, `TowerSizes`: what a formula of `dehvf-kit plan` takes and returns.
- `DehvfError` and its children: errors whose message is shown to the user without a traceback.

The names load on first use, so that a plugin's entry module costs no more than the hooks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "DecoderComponent": "dehvf_kit.api.components",
    "VisionComponent": "dehvf_kit.api.components",
    "BuildContext": "dehvf_kit.api.config",
    "ComponentConfig": "dehvf_kit.api.config",
    "ConfigMismatchError": "dehvf_kit.api.config",
    "Misfit": "dehvf_kit.api.config",
    "Settings": "dehvf_kit.api.config",
    "BaselineCost": "dehvf_kit.api.cost_formulas",
    "CostFormula": "dehvf_kit.api.cost_formulas",
    "TowerSizes": "dehvf_kit.api.cost_formulas",
    "Register": "dehvf_kit.api.hookspecs",
    "RegisterCommand": "dehvf_kit.api.hookspecs",
    "RegisterSource": "dehvf_kit.api.hookspecs",
    "hookimpl": "dehvf_kit.api.hookspecs",
    "Registry": "dehvf_kit.api.registry",
    "Source": "dehvf_kit.api.registry",
    "plugin_code": "dehvf_kit.api.registry",
    "KV": "dehvf_kit.api.shapes",
    "Cost": "dehvf_kit.api.shapes",
    "DecoderSpec": "dehvf_kit.api.shapes",
    "GroupLayers": "dehvf_kit.api.shapes",
    "Readout": "dehvf_kit.api.shapes",
    "Unprojected": "dehvf_kit.api.shapes",
    "VisionSpec": "dehvf_kit.api.shapes",
    "AdapterError": "dehvf_kit.errors",
    "DataError": "dehvf_kit.errors",
    "DecoderError": "dehvf_kit.errors",
    "DehvfError": "dehvf_kit.errors",
    "ImageError": "dehvf_kit.errors",
    "PluginError": "dehvf_kit.errors",
    "RecipeError": "dehvf_kit.errors",
    "ShapeError": "dehvf_kit.errors",
    "TrainingError": "dehvf_kit.errors",
    "VisionError": "dehvf_kit.errors",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dehvf_kit.api' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


if TYPE_CHECKING:  # `as`: exported, in the eyes of strict type checkers
    from dehvf_kit.api.components import DecoderComponent as DecoderComponent
    from dehvf_kit.api.components import VisionComponent as VisionComponent
    from dehvf_kit.api.config import BuildContext as BuildContext
    from dehvf_kit.api.config import ComponentConfig as ComponentConfig
    from dehvf_kit.api.config import ConfigMismatchError as ConfigMismatchError
    from dehvf_kit.api.config import Misfit as Misfit
    from dehvf_kit.api.config import Settings as Settings
    from dehvf_kit.api.cost_formulas import BaselineCost as BaselineCost
    from dehvf_kit.api.cost_formulas import CostFormula as CostFormula
    from dehvf_kit.api.cost_formulas import TowerSizes as TowerSizes
    from dehvf_kit.api.hookspecs import Register as Register
    from dehvf_kit.api.hookspecs import RegisterCommand as RegisterCommand
    from dehvf_kit.api.hookspecs import RegisterSource as RegisterSource
    from dehvf_kit.api.hookspecs import hookimpl as hookimpl
    from dehvf_kit.api.registry import Registry as Registry
    from dehvf_kit.api.registry import Source as Source
    from dehvf_kit.api.registry import plugin_code as plugin_code
    from dehvf_kit.api.shapes import KV as KV
    from dehvf_kit.api.shapes import Cost as Cost
    from dehvf_kit.api.shapes import DecoderSpec as DecoderSpec
    from dehvf_kit.api.shapes import GroupLayers as GroupLayers
    from dehvf_kit.api.shapes import Readout as Readout
    from dehvf_kit.api.shapes import Unprojected as Unprojected
    from dehvf_kit.api.shapes import VisionSpec as VisionSpec
    from dehvf_kit.errors import AdapterError as AdapterError
    from dehvf_kit.errors import DataError as DataError
    from dehvf_kit.errors import DecoderError as DecoderError
    from dehvf_kit.errors import DehvfError as DehvfError
    from dehvf_kit.errors import ImageError as ImageError
    from dehvf_kit.errors import PluginError as PluginError
    from dehvf_kit.errors import RecipeError as RecipeError
    from dehvf_kit.errors import ShapeError as ShapeError
    from dehvf_kit.errors import TrainingError as TrainingError
    from dehvf_kit.errors import VisionError as VisionError
