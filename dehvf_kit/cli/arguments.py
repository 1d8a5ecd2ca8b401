"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, a .yaml file.", show_default=False)]
Adapter = Annotated[
    Path, typer.Argument(metavar="ADAPTER", help="A saved adapter's folder, its run's, or its hub id.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields to change: training.batch_size=8", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE... [KEY=VALUE]...", help="Recipes, .yaml files, and fields to change in all of them.", show_default=False
    ),
]
