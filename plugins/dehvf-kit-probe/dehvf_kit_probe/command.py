"""`dehvf-kit probe`: which encoder layers tell the answers to a recipe's questions, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.console import grid, print_json, reporting, stdout

if TYPE_CHECKING:
    from dehvf_kit_probe.probe import Probed


def probe(
    recipe: RecipeFile,
    overrides: Overrides = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="The encoder, where the recipe has several.", show_default="the only one")
    ] = None,
    images: Annotated[int | None, typer.Option("--images", min=10, help="Most images of each split.", show_default="all")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write all figures as JSON.")] = None,
    heat_map: Annotated[
        Path | None, typer.Option("--heat-map", metavar="FILE", help="Draw layers by kinds of questions (.svg or .png).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Probe a recipe's encoder. Raises: DehvfError for a faulty recipe, data without images, or a file that cannot be written."""
    from dehvf_kit.errors import DehvfError
    from dehvf_kit.recipe.recipe import load_recipe
    from dehvf_kit.utils.atomic import check_new_files, write_output
    from dehvf_kit.utils.plotting import pyplot
    from dehvf_kit_probe.heat_map import draw_heat_map
    from dehvf_kit_probe.probe import probe as run

    if heat_map is not None and heat_map.suffix not in (".svg", ".png"):
        raise DehvfError(f"--heat-map: '{heat_map}' ends in neither .svg nor .png")
    check_new_files({"--output": output, "--heat-map": heat_map})
    if heat_map is not None:
        pyplot()  # told now where it is missing, not after the work
    loaded = load_recipe(recipe, overrides or [])
    name = encoder or next(iter(loaded.vision), "vision")
    if encoder is None and len(loaded.vision) > 1:
        raise DehvfError(f"{recipe}: has the encoders {', '.join(loaded.vision)}; name one by --encoder")
    with reporting() as report:
        found = run(loaded, name, images, lambda done, total: report("reading images", done, total, ""))
    facts = as_dict(found)
    try:
        if as_json:
            print_json(facts)
        else:
            _show(found)
    finally:  # a full disk behind one of the two loses no figure
        if output is not None:
            import json

            write_output(output, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        if heat_map is not None:
            draw_heat_map(found, heat_map)


def as_dict(found: Probed) -> dict[str, Any]:
    """Every figure, for JSON. Layers are counted from 1."""
    kinds = {}
    for kind in found.kinds:
        lost, half = kind.lost_by(found.penultimate)
        kinds[kind.name] = {
            "answers": kind.answers,
            "train_questions": kind.train,
            "test_questions": kind.test,
            "chance": kind.chance,
            "best_layer": kind.best.layer + 1,
            "penultimate_loses": {"accuracy": lost, "low": lost - half, "high": lost + half},
            "layers": [{"layer": one.layer + 1, **one.scores} for one in kind.layers],
        }
    wanted = [layer + 1 for layer in found.wanted_layers()]
    return {
        "encoder": found.encoder,
        "images": found.images,
        "num_layers": found.num_layers,
        "layers_wanted": wanted,
        "kinds": kinds,
        "not_probed": dict(found.skipped),
    }


def _show(found: Probed) -> None:
    console, table = stdout(), grid(*["left"] + ["right"] * 7)
    console.print(f"[bold]{escape(found.encoder)}[/]  {found.num_layers} layers, {found.images:,} images; 95% intervals")
    heads = ("question", "answers", "chance", "first layer", "last layer", "best layer", "accuracy", "penultimate loses")
    table.add_row("", *(f"[bold]{head}[/]" for head in heads))
    for kind in found.kinds:
        best, (lost, half) = kind.best, kind.lost_by(found.penultimate)
        score = best.scores["both"]
        accuracy = f"{best.accuracy:.1%} ({100 * score['low']:.1f} to {100 * score['high']:.1f})"
        ends = (f"{kind.layers[0].accuracy:.1%}", f"{kind.layers[-1].accuracy:.1%}")
        loses = f"{100 * lost:.1f} ± {100 * half:.1f}"
        table.add_row("", escape(kind.name), f"{kind.answers}", f"{kind.chance:.1%}", *ends, f"{best.layer + 1}", accuracy, loses)
    console.print(table)
    for name, why in found.skipped.items():
        console.print(f"  not probed: {escape(name)}: {escape(why)}")
    wanted = found.wanted_layers()
    layers = ", ".join(str(layer + 1) for layer in wanted)
    if len(wanted) == 1:
        console.print(f"Layer {layers} serves every kind of question: a choice of depths is worth little on these data.")
    else:
        console.print(f"No single layer serves every kind of question: a grouper should offer layers {layers} in different groups.")
