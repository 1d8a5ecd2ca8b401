"""`dehvf-kit train`: a recipe's adapter trained on its data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dehvf_kit.cli.build import default_folder
from dehvf_kit.cli.console import print_json, quiet_transformers
from dehvf_kit.cli.progress import reporting


def run(path: Path, overrides: Sequence[str], output: Path | None, resume: bool, as_json: bool) -> None:
    """Train and save. Raises: RecipeError, DataError or DehvfError, each saying what to change."""
    from dehvf_kit.recipe import load_recipe
    from dehvf_kit.training.run import train

    quiet_transformers()
    recipe = load_recipe(path, overrides)
    folder = output or default_folder(recipe.name)
    with reporting() as report:
        result = train(recipe, folder, resume=resume, progress=report)
    if as_json:
        facts = {"adapter": str(result.adapter), "steps": result.steps, "samples": result.samples, "seconds": result.seconds}
        print_json({**facts, "log": result.log})
        return
    print(f"{result.steps} steps in {result.seconds:.0f} s; adapter in {result.adapter}")
    print(f"score it: dehvf-kit eval {result.adapter}")
