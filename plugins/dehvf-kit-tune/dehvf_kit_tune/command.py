"""`dehvf-kit tune`: a table of trials, and a recipe with the best settings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.console import grid, print_json, reporting, stdout


class Sampler(StrEnum):
    """What --sampler takes: typer knows no Literal before 0.19."""

    TPE = "tpe"
    GRID = "grid"


def tune(
    recipe: RecipeFile,
    overrides: Overrides = None,
    search: Annotated[
        list[str] | None,
        typer.Option("--search", "-s", metavar="KEY=VALUES", help="A field and its values: A,B,C, or LOW..HIGH, or LOW..HIGH:log."),
    ] = None,
    sampler: Annotated[Sampler, typer.Option("--sampler", help="How the next values are chosen.")] = Sampler.TPE,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, max=100_000, help="Trials in all.", show_default="20; all of a grid")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="Seed of the sampler.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The study's folder.", show_default="runs/NAME-tune")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search, or go on with the search in the folder. Raises: RecipeError, DataError or DehvfError, each saying what to change."""
    import optuna

    from dehvf_kit.errors import DehvfError
    from dehvf_kit.recipe.recipe import load_recipe
    from dehvf_kit.training.run_folder import default_folder
    from dehvf_kit.utils.atomic import write_output
    from dehvf_kit.utils.plain_data import to_yaml
    from dehvf_kit_tune.search import axes
    from dehvf_kit_tune.tuning import Tuning

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not search:
        raise DehvfError("tune: nothing to search; name fields and values, --search training.base_learning_rate=0.002..0.2:log")
    named = default_folder(load_recipe(recipe, overrides or ()).name)
    place = output or named.with_name(f"{named.name}-tune")
    count = trials or (None if sampler == "grid" else 20)
    tuning = Tuning(
        recipe, overrides=overrides or (), space=axes(search), place=place, sampler=sampler.value, trials=count, seed=seed
    )
    with reporting() as report:
        tuning.run(report)
    best = tuning.best
    if best is None:
        raise DehvfError(f"{place}: not one of {len(tuning.finished)} trials has a score; the first: {_fault(tuning.finished[0])}")
    best_file = place / "best.yaml"
    write_output(best_file, to_yaml(load_recipe(recipe, tuning.settings(best.params)).resolved()))
    if as_json:
        rows = [
            {"trial": one.user_attrs["folder"], **one.params, tuning.metric: one.value, "fault": _fault(one)}
            for one in tuning.finished
        ]
        print_json({"best": best.params, tuning.metric: best.value, "recipe": str(best_file), "trials": rows})
        return
    table = grid("left", *["right"] * (len(tuning.space) + 1), "left")
    table.add_row("[bold]trial[/]", *(f"[bold]{escape(axis.key)}[/]" for axis in tuning.space), f"[bold]{tuning.metric}[/]", "")
    for one in tuning.finished:
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in (one.params[a.key] for a in tuning.space)]
        note = "best" if one.number == best.number else escape(_fault(one))
        table.add_row(one.user_attrs["folder"], *map(escape, cells), "-" if one.value is None else f"{one.value:.4g}", note)
    stdout().print(table)
    print(f"a recipe with the best settings: {best_file}\ntheir adapter: {place / best.user_attrs['folder'] / 'adapter'}")


def _fault(trial: Any) -> str:
    return str(trial.user_attrs.get("fault", ""))
