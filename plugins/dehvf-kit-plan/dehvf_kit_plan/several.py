"""Several recipes as they are typed: `RECIPE... KEY=VALUE...`, the changes applying to all of them."""

from __future__ import annotations

from collections.abc import Sequence

from dehvf_kit.cli.arguments import split_words
from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.recipe import Recipe, load_recipe


def load_all(words: Sequence[str]) -> list[Recipe]:
    """Every recipe with the same overrides. Raises: DehvfError with the faults of all of them."""
    files, overrides = split_words(words)
    if not files:
        raise DehvfError("name at least one recipe, a .yaml file")
    recipes, faults = [], []
    for file in files:
        try:
            recipes.append(load_recipe(file, overrides))
        except DehvfError as error:
            faults.append(str(error))
    if faults:
        raise DehvfError("\n".join(dict.fromkeys(faults)))
    return recipes
