"""`dehvf-kit import-memvp`: an official MemVP adapter checkpoint as an adapter of the kit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dehvf_kit.cli.console import print_json, quiet_transformers, stdout, waiting


def run(file: Path, recipe: Path, overrides: Sequence[str], output: Path, overwrite: bool, as_json: bool) -> None:
    """Read, check, save and report. Raises: RecipeError for a faulty recipe, AdapterError for what does not fit it."""
    with waiting(f"Reading {file}", plain=True):
        from dehvf_kit_baselines.memvp_checkpoint import import_memvp

        from dehvf_kit.recipe.recipe import load_recipe

        quiet_transformers()
        found = import_memvp(file, load_recipe(recipe, overrides), output, overwrite)
    if as_json:
        count = found.model.num_trainable_parameters()
        print_json({"adapter": str(output), "parameters": count, "left_out": list(found.dropped)})
        return
    console = stdout()
    console.print(f"{found.model.num_trainable_parameters():,} parameters read; adapter in {output}", highlight=False)
    for name in found.dropped:
        console.print(f"left out: {name}, which nothing reads", highlight=False)
