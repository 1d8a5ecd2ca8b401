"""`dehvf-kit prepare`: what data sets contain, beside the published sizes, and everything wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from dehvf_kit.cli.arguments import Json, split_words
from dehvf_kit.cli.console import grid, print_json, reporting, section, stdout
from dehvf_kit.errors import DataError

SHOWN = 5


def prepare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|DATA... [KEY=VALUE]...", help="Recipes, folders or files of data; fields to change.", show_default=False
        ),
    ],
    open_images: Annotated[
        bool, typer.Option("--open/--no-open", help="Decode every image instead of only looking for its file.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Inspect and print; the exit status is 1 where something would stop a run. Raises: RecipeError, DataError."""
    from dehvf_kit_doctor.data_report import inspect_data

    places, overrides = split_words(words)
    if not places:
        raise DataError("prepare: name a recipe, or a file or folder of data")
    found: dict[str, list[Any]] = {}
    kinds = {}
    with reporting() as report:
        for place in places:
            config, reads_images = _data_of(Path(place), overrides)
            kinds[place] = config.type
            found[place] = inspect_data(config, open_images, report, reads_images)
    sound = all(part.sound for parts in found.values() for part in parts)
    if as_json:
        rows = {place: {"type": kinds[place], "splits": [part.row() for part in parts]} for place, parts in found.items()}
        print_json({"sound": sound, "data": rows})
        raise typer.Exit(int(not sound))
    for place, parts in found.items():
        _show(place, kinds[place], parts)
    print("\nno errors found" if sound else "\nfix the faults above; --json lists every one")
    raise typer.Exit(int(not sound))


def _data_of(place: Path, overrides: Sequence[str]) -> tuple[Any, bool | None]:
    """The data config of a recipe, and whether its graph reads images; of a file or folder of data, which None reads.

    Raises: RecipeError, DataError.
    """
    from dehvf_kit.data.inspection import recognise
    from dehvf_kit.recipe.files import override
    from dehvf_kit.recipe.parser import parse_data
    from dehvf_kit.recipe.plugin_manager import plugins
    from dehvf_kit.recipe.recipe import load_recipe

    if place.suffix in (".yaml", ".yml"):
        recipe = load_recipe(place, overrides)
        if recipe.data is None:
            raise DataError(f"{place}: has no `data` section")
        return recipe.data, recipe.reads_images
    registry = plugins().registry
    raw: dict[str, Any] = {"data": recognise(place, [config for (role, _), config in registry.configs.items() if role == "data"])}
    for text in overrides:
        override(raw, text)
    return parse_data(raw["data"], str(place), registry), None


def _show(place: str, kind: str, parts: Sequence[Any]) -> None:
    """A table of splits, and below it the issues by kind."""
    console = stdout()
    section(console, escape(place), kind)
    table = grid("left", "right", "right", "right", "left")
    table.add_row("", "[bold]split[/]", "[bold]samples[/]", "[bold]with image[/]", "[bold]images[/]", "")
    for part in parts:
        table.add_row("", part.name, f"{part.samples:,}", f"{part.with_image:,}", f"{part.images:,}", escape(_beside(part)))
    console.print(table)
    from dehvf_kit.data.samples import grouped

    for part in parts:
        for name, group in grouped(part.issues).items():
            mark = "[red]fault[/]" if group[0].fatal else "[yellow]note[/]"
            console.print(f"  {mark}  {part.name}: {len(group):,} x {escape(name)}")
            for issue in group[:SHOWN]:
                console.print(f"         {escape(str(issue))}")
            if len(group) > SHOWN:
                console.print(f"         [dim]and {len(group) - SHOWN:,} more[/]")


def _beside(part: Any) -> str:
    """A split's size beside the published one, or what it is made of."""
    if part.published is None:
        return ", ".join(f"{name} {count:,}" for name, count in part.facts.items())
    published = part.published
    if published.count == part.count:
        return f"{part.count:,} {published.unit}, as published ({published.source})"
    return f"{part.count:,} {published.unit}; {published.count:,} published ({published.source})"
