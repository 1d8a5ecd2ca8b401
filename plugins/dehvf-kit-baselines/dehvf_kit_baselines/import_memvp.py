"""`dehvf-kit import-memvp`: an official MemVP adapter checkpoint as an adapter of the kit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json, Overrides
from dehvf_kit.cli.console import print_json, stdout, waiting
from dehvf_kit.utils.atomic import check_new_folder


def import_memvp(
    checkpoint: Annotated[Path, typer.Argument(metavar="FILE", help="An official MemVP .pth file.", show_default=False)],
    recipe: Annotated[Path, typer.Option("--recipe", "-r", metavar="RECIPE", help="A MemVP recipe of the same sizes.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The adapter's folder.")],
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing adapter.")] = False,
    as_json: Json = False,
) -> None:
    """Read, check, save and report. Raises: RecipeError for a faulty recipe, AdapterError for what does not fit it."""
    check_new_folder(output)
    with waiting(f"Reading {checkpoint}", plain=True):
        from dehvf_kit.recipe.recipe import load_recipe
        from dehvf_kit_baselines import memvp_checkpoint

        found = memvp_checkpoint.import_memvp(checkpoint, load_recipe(recipe, overrides or ()), output, overwrite)
    if as_json:
        count = found.model.num_trainable_parameters()
        print_json({"adapter": str(output), "parameters": count, "left_out": list(found.dropped)})
        return
    console = stdout()
    console.print(f"{found.model.num_trainable_parameters():,} parameters read; adapter in {output}", highlight=False)
    for name in found.dropped:
        console.print(f"excluded: {name}, which nothing reads", highlight=False)
