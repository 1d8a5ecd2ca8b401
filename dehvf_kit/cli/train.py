"""`dehvf-kit train`: a recipe's adapter trained on its data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.console import print_json, reporting


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The run's folder.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run from its newest complete checkpoint.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train and save. Raises: RecipeError, DataError or DehvfError, each saying what to change."""
    from dehvf_kit.data.sample_filter import SKIPPED, summary
    from dehvf_kit.recipe.recipe import image_statements, load_recipe
    from dehvf_kit.training import run
    from dehvf_kit.training.distributed import join_processes, leave_processes
    from dehvf_kit.training.run_folder import default_folder

    loaded = load_recipe(recipe, overrides or ())
    folder = output or default_folder(loaded.name)
    here = join_processes()
    for one in image_statements(loaded).values() if here.main else ():
        if one.note:
            print(f"note: {one.note}", file=sys.stderr)
    with reporting() as report:
        result = run.train(loaded, folder, resume=resume, progress=report)
    leave_processes()
    if not here.main:
        return
    if as_json:
        facts = {"adapter": str(result.adapter), "steps": result.steps, "samples": result.samples, "seconds": result.seconds}
        best = None if result.best is None else dict(zip(("step", "value"), result.best, strict=True))
        print_json({**facts, "best": best, "test_score": result.test_score, "log": result.log})
        return
    if result.skipped:
        print(f"{len(result.skipped)} steps skipped because their loss or gradient is not finite: see {folder / 'log.jsonl'}")
    if result.overflowed:
        print(f"{len(result.overflowed)} steps skipped to find a loss scale at which float16 does not overflow, as is usual")
    if result.left_out:
        print(f"{len(result.left_out)} samples excluded, without a token to learn from")
    if result.best is not None:
        print(f"best {loaded.training.metric_for_best} of the validation split: {result.best[1]:.4g}, at step {result.best[0]}")
    if result.test_score is not None:
        print(f"score of the test split: {result.test_score:.4g}")
    print(f"{result.steps} steps in {result.seconds:.0f} s; adapter in {result.adapter}")
    if result.skipped_samples:
        print(summary(result.skipped_samples, folder / SKIPPED))
    print(f"score it: dehvf-kit eval {result.adapter}")
