"""`dehvf-kit show`: a recipe with its parents merged and every default filled in, ready to be loaded again."""

from __future__ import annotations

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.console import print_json, stdout, waiting


def show(recipe: RecipeFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print a recipe whole. Raises: RecipeError listing every fault."""
    with waiting(f"Reading {recipe}", plain=True):
        from dehvf_kit.recipe.recipe import load_recipe
        from dehvf_kit.utils.plain_data import to_yaml

        resolved = load_recipe(recipe, overrides or ()).resolved()
    if as_json:
        print_json(resolved)
        return
    text = to_yaml(resolved)
    console = stdout()
    if not console.is_terminal:
        print(text, end="")
        return
    from rich.syntax import Syntax

    console.print(Syntax(text, "yaml", theme="ansi_dark").highlight(text), end="", soft_wrap=True)
