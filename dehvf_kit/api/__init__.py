"""What a plugin imports: config classes, the shapes that travel between towers and components, and the hooks.

The names load on first use, so that a plugin's entry module costs no more than the hooks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dehvf_kit.api.plugin_code import plugin_code as plugin_code

_HOME = {
    "BuildContext": "config",
    "ComponentConfig": "config",
    "ConfigMismatchError": "config",
    "Settings": "config",
    "BaselineCost": "cost_formulas",
    "CostFormula": "cost_formulas",
    "TowerSizes": "cost_formulas",
    "Register": "hookspecs",
    "RegisterCommand": "hookspecs",
    "RegisterSource": "hookspecs",
    "hookimpl": "hookspecs",
    "Registry": "registry",
    "Source": "registry",
    "DecoderSpec": "shapes",
    "VisionSpec": "shapes",
}
__all__ = ["plugin_code", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dehvf_kit.api' has no attribute '{name}'")
    return getattr(import_module(f"dehvf_kit.api.{_HOME[name]}"), name)


if TYPE_CHECKING:  # `as`: exported, in the eyes of strict type checkers
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
    from dehvf_kit.api.shapes import DecoderSpec as DecoderSpec
    from dehvf_kit.api.shapes import VisionSpec as VisionSpec
