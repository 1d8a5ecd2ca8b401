"""Recipes: what a YAML file may say, checked against the towers and wired as a graph.

Public names load on first use: `Recipe`, `load_recipe`, `parse_recipe`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Recipe", "load_recipe", "parse_recipe"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dehvf_kit.recipe' has no attribute '{name}'")
    return getattr(import_module("dehvf_kit.recipe.recipe"), name)


if TYPE_CHECKING:
    from dehvf_kit.recipe.recipe import Recipe as Recipe
    from dehvf_kit.recipe.recipe import load_recipe as load_recipe
    from dehvf_kit.recipe.recipe import parse_recipe as parse_recipe
