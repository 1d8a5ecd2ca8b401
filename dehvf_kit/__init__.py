"""Adds vision to a frozen LLM: hierarchical visual features written into its feed-forward memory.

Public names load on first use, so importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dehvf_kit._transformers import register_with_transformers
from dehvf_kit._version import __version__

_HOME = {
    "load_recipe": "dehvf_kit.recipe.recipe",
    "parse_recipe": "dehvf_kit.recipe.recipe",
    "Recipe": "dehvf_kit.recipe.recipe",
    "build": "dehvf_kit.model.builder",
    "train": "dehvf_kit.training.run",
    "evaluate": "dehvf_kit.evaluation.evaluate",
    "compare": "dehvf_kit.evaluation.evaluate",
    "load": "dehvf_kit.adapter.checkpoint",
    "DehvfConfig": "dehvf_kit.model.config",
    "DehvfModel": "dehvf_kit.model.model",
    "DehvfProcessor": "dehvf_kit.data.processing",
    "ffn_sites": "dehvf_kit.backbones.ffn.sites",
    "FfnSite": "dehvf_kit.backbones.ffn.sites",
    "hook_ffns": "dehvf_kit.backbones.ffn.memory_hooks",
    "attach_memory": "dehvf_kit.backbones.ffn.memory_hooks",
    "layer_sites": "dehvf_kit.backbones.layer_hooks",
    "LayerSite": "dehvf_kit.backbones.layer_hooks",
    "hook_layers": "dehvf_kit.backbones.layer_hooks",
    "map_sites": "dehvf_kit.backbones.map_hooks",
    "MapSite": "dehvf_kit.backbones.map_hooks",
    "hook_maps": "dehvf_kit.backbones.map_hooks",
    "low_rank": "dehvf_kit.backbones.map_hooks",
    "detach_all": "dehvf_kit.backbones.attached",
    "attention_sites": "dehvf_kit.backbones.decoder",
    "hookimpl": "dehvf_kit.api.hookspecs",
    "ComponentConfig": "dehvf_kit.api.config",
    "BuildContext": "dehvf_kit.api.config",
    "ConfigMismatchError": "dehvf_kit.api.config",
    "Misfit": "dehvf_kit.api.config",
    "DehvfError": "dehvf_kit.errors",
    "RecipeError": "dehvf_kit.errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dehvf_kit' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:  # `as`: exported, in the eyes of strict type checkers
    from dehvf_kit.adapter.checkpoint import load as load
    from dehvf_kit.api.config import BuildContext as BuildContext
    from dehvf_kit.api.config import ComponentConfig as ComponentConfig
    from dehvf_kit.api.config import ConfigMismatchError as ConfigMismatchError
    from dehvf_kit.api.config import Misfit as Misfit
    from dehvf_kit.api.hookspecs import hookimpl as hookimpl
    from dehvf_kit.backbones.attached import detach_all as detach_all
    from dehvf_kit.backbones.decoder import attention_sites as attention_sites
    from dehvf_kit.backbones.ffn.memory_hooks import attach_memory as attach_memory
    from dehvf_kit.backbones.ffn.memory_hooks import hook_ffns as hook_ffns
    from dehvf_kit.backbones.ffn.sites import FfnSite as FfnSite
    from dehvf_kit.backbones.ffn.sites import ffn_sites as ffn_sites
    from dehvf_kit.backbones.layer_hooks import LayerSite as LayerSite
    from dehvf_kit.backbones.layer_hooks import hook_layers as hook_layers
    from dehvf_kit.backbones.layer_hooks import layer_sites as layer_sites
    from dehvf_kit.backbones.map_hooks import MapSite as MapSite
    from dehvf_kit.backbones.map_hooks import hook_maps as hook_maps
    from dehvf_kit.backbones.map_hooks import low_rank as low_rank
    from dehvf_kit.backbones.map_hooks import map_sites as map_sites
    from dehvf_kit.data.processing import DehvfProcessor as DehvfProcessor
    from dehvf_kit.errors import DehvfError as DehvfError
    from dehvf_kit.errors import RecipeError as RecipeError
    from dehvf_kit.evaluation.evaluate import compare as compare
    from dehvf_kit.evaluation.evaluate import evaluate as evaluate
    from dehvf_kit.model.builder import build as build
    from dehvf_kit.model.config import DehvfConfig as DehvfConfig
    from dehvf_kit.model.model import DehvfModel as DehvfModel
    from dehvf_kit.recipe.recipe import Recipe as Recipe
    from dehvf_kit.recipe.recipe import load_recipe as load_recipe
    from dehvf_kit.recipe.recipe import parse_recipe as parse_recipe
    from dehvf_kit.training.run import train as train

register_with_transformers()
