"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
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


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files or folders, and `KEY=VALUE` fields; a word with `=` that is there as a file or folder is one: runs/lr=0.1/adapter."""
    overrides = [word for word in words if "=" in word and not os.path.exists(word)]
    return [word for word in words if word not in overrides], overrides
