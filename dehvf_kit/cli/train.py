"""`dehvf-kit train`: a recipe's adapter trained on its data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dehvf_kit.cli.build import default_folder
from dehvf_kit.cli.console import print_json, quiet_transformers
from dehvf_kit.cli.progress import reporting


def run(path: Path, overrides: Sequence[str], output: Path | None, resume: bool, as_json: bool) -> None:
    """Train and save. Raises: RecipeError, DataError or DehvfError, each saying what to change."""
    from dehvf_kit.data.sample_filter import SKIPPED, summary
    from dehvf_kit.recipe.recipe import load_recipe
    from dehvf_kit.training.distributed import join_processes, leave_processes
    from dehvf_kit.training.run import train

    quiet_transformers()
    recipe = load_recipe(path, overrides)
    folder = output or default_folder(recipe.name)
    here = join_processes()
    with reporting() as report:
        result = train(recipe, folder, resume=resume, progress=report)
    leave_processes()
    if not here.main:
        return
    if as_json:
        facts = {
            "adapter": str(result.adapter),
            "steps": result.steps,
            "samples": result.samples,
            "seconds": result.seconds,
        }
        print_json({**facts, "log": result.log})
        return
    if result.skipped:
        print(f"{len(result.skipped)} steps skipped, their loss or gradient not finite: see {folder / 'log.jsonl'}")
    if result.left_out:
        print(f"{len(result.left_out)} samples left out, without a token to learn from")
    print(f"{result.steps} steps in {result.seconds:.0f} s; adapter in {result.adapter}")
    if result.skipped_samples:
        print(summary(result.skipped_samples, folder / SKIPPED))
    print(f"score it: dehvf-kit eval {result.adapter}")
