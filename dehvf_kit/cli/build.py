"""`dehvf-kit build`: the adapter of a recipe without base weights, saved, with everything that can be counted of it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.console import grid, print_json, section, stdout, waiting
from dehvf_kit.errors import AdapterError
from dehvf_kit.utils.atomic import check_new_folder, exists
from dehvf_kit.utils.units import si

if TYPE_CHECKING:
    from dehvf_kit.costs.flops import FlopCount
    from dehvf_kit.costs.memory import MemoryUsage
    from dehvf_kit.costs.parameters import ParameterTable
    from dehvf_kit.model.model import DehvfModel
    from dehvf_kit.recipe.graph import Graph

_PLACES = {"decoder": " on decoder layers", "vision": " on vision blocks", "input": " in the decoder's input"}


def build(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The adapter's folder.", show_default="runs/NAME")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing adapter.")] = False,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Write the adapter.")] = True,
    as_json: Json = False,
) -> None:
    """Build, save and report. Raises: RecipeError for a faulty recipe, AdapterError where weights would be lost."""
    with waiting(f"Building {recipe} without base weights", plain=True):
        from dehvf_kit.backbones.base import NoConfig
        from dehvf_kit.backbones.quantization import weight_notes
        from dehvf_kit.costs.flops import count_flops
        from dehvf_kit.costs.memory import memory_usage
        from dehvf_kit.costs.parameters import parameter_table
        from dehvf_kit.model.builder import build_on_meta
        from dehvf_kit.recipe.recipe import load_recipe
        from dehvf_kit.training.run_folder import default_folder

        loaded = load_recipe(recipe, overrides or ())
        folder = (output or default_folder(loaded.name)) if save else None
        if folder is not None:
            check_new_folder(folder)
        try:
            model = build_on_meta(loaded)
        except NoConfig:
            loaded.check()  # reports the same with its place in the recipe
            raise
        if folder is not None:
            _save_adapter(model, folder, overwrite)
        parameters = parameter_table(model.graph, loaded.published)
        dtypes = {name: tower.dtype for name, tower in loaded.vision.items()}
        with model.hooks_disabled():
            flops = count_flops(model.graph, model.decoder, model.towers)
            quantization = getattr(loaded.decoder, "quantization", None)
            memory = memory_usage(model.graph, model.decoder, model.towers, loaded.decoder.dtype, dtypes, quantization)
            notes = weight_notes(model.decoder, quantization)
    if as_json:
        print_json({**_facts(model, parameters, flops, memory, folder), "notes": notes})
        return
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    _print_report(stdout(), model, parameters, flops, memory, folder)


def _save_adapter(model: DehvfModel, folder: Path, overwrite: bool) -> None:
    """Write the adapter. An existing one is replaced where it holds the same weights, or with `overwrite`.

    Raises: AdapterError where other weights would be lost, or the folder is a run's or cannot be written.
    """
    from dehvf_kit.adapter.checkpoint import save
    from dehvf_kit.adapter.files import WEIGHTS, finish_saving
    from dehvf_kit.training.run_folder import holds_run

    if holds_run(folder):
        raise AdapterError(f"{folder}: holds a run already; name another folder by --output, or give --no-save")
    finish_saving(folder)
    if exists(folder / WEIGHTS) and not overwrite and not _same_weights(model, folder):
        raise AdapterError(f"{folder}: holds an adapter with other weights; name another folder, or replace it with --overwrite")
    save(model, folder)


def _same_weights(model: DehvfModel, folder: Path) -> bool:
    """Whether an adapter on disk holds the initial weights of this model, so that nothing is lost with it."""
    import torch

    from dehvf_kit.adapter.checkpoint import saved_tensors
    from dehvf_kit.adapter.files import read_weights

    try:
        known = read_weights(folder)
    except AdapterError:
        return False
    fresh = saved_tensors(model)
    return set(known) == set(fresh) and all(torch.equal(known[name], tensor.detach()) for name, tensor in fresh.items())


def _facts(
    model: DehvfModel, parameters: ParameterTable, flops: FlopCount, memory: MemoryUsage, folder: Path | None
) -> dict[str, Any]:
    """All that the command reports, as plain data."""
    recipe, graph = model.recipe, model.graph
    published = parameters.published
    return {
        "recipe": recipe.name,
        "description": recipe.description,
        "source": recipe.source,
        "saved": str(folder) if folder else None,
        "trainable_parameters": parameters.trainable,
        "trainable_parameters_as_published": parameters.as_published,
        "unused_parameters": parameters.unused,
        "published": published.parameters if published else None,
        "published_source": published.source if published else None,
        "matches_published": parameters.matches,
        "parameters": [asdict(term) for term in parameters.terms],
        "decoder": {"model": recipe.decoder.model, **graph.contexts[graph.order[0]].decoder.sizes()},
        "vision": {
            name: {"model": recipe.vision[name].model, **asdict(tower.spec), "layers_read": list(graph.layers[name])}
            for name, tower in model.towers.items()
        },
        "graph": [
            {
                "node": name,
                "role": graph.nodes[name].config.role,
                "type": graph.nodes[name].config.type,
                "inputs": {port: [str(wire) for wire in wires] for port, wires in graph.wires[name].items()},
                "outputs": {port: dict(graph.sizes[name, port]) for port in graph.nodes[name].gives},
            }
            for name in graph.order
        ],
        "flops": asdict(flops),
        "memory_bytes": asdict(memory),
    }


def _print_report(
    console: Console, model: DehvfModel, parameters: ParameterTable, flops: FlopCount, memory: MemoryUsage, folder: Path | None
) -> None:
    """The whole report."""
    recipe = model.recipe
    console.print(f"[bold]{escape(recipe.name)}[/]  {escape(recipe.description)}")
    _towers(console, model)
    _graph(console, model.graph)
    _parameters(console, parameters)
    _flops(console, flops)
    _memory(console, memory)
    if folder is not None:
        console.print(f"\nAdapter saved in [bold]{escape(str(folder))}[/] (untrained, {si(memory.adapter, 'B')})")


def _towers(console: Console, model: DehvfModel) -> None:
    from dehvf_kit.costs.flops import encoders_read

    section(console, "Base models", "frozen; only their configs were read")
    table, running = grid("left", "left", "left"), encoders_read(model.graph)
    for name, tower in model.towers.items():
        spec, read = tower.spec, len(model.graph.layers[name])
        layers = f"{spec.num_layers} layers of {spec.hidden_size} ({read if name in running else 'none'} read)"
        sizes = f"{layers}, {spec.num_patches} patches at {spec.image_size} px"
        table.add_row("", f"[cyan]{name}[/]", escape(model.recipe.vision[name].model or spec.model_type), sizes)
    spec = model.graph.contexts[model.graph.order[0]].decoder
    count = si(spec.num_parameters, "").replace("G", "B")
    sizes = f"{spec.num_layers} layers of {spec.hidden_size}, {spec.activation}, {count} parameters"
    table.add_row("", "[cyan]decoder[/]", escape(model.recipe.decoder.model or spec.model_type), sizes)
    console.print(table)


def _graph(console: Console, graph: Graph) -> None:
    section(console, "Graph", "in the order it runs; input <- node.output \\[axes]")
    for name in graph.order:
        node = graph.nodes[name]
        place = _PLACES.get(node.config.attaches, "")
        kind = node.config.type if node.config.role == name else f"{node.config.role} {node.config.type}"
        console.print(f"  [cyan]{name}[/]  {kind}[dim]{place}[/]")
        table = grid("left", "left", "left", indent=4)
        for port, wires in graph.wires[name].items():
            for wire in wires:
                axes = graph.shape(wire, node.takes[port].axes)
                table.add_row("", port, f"<- {wire}", f"[dim]\\[{axes}][/]")
        if graph.wires[name]:
            console.print(table)


def _parameters(console: Console, table: ParameterTable) -> None:
    section(console, "Trained parameters")
    rows = grid("left", "left", "right")
    for node, term, count in table.rows():
        rows.add_row("", f"[cyan]{node}[/]", term, count)
    rows.add_row("", "[bold]sum[/]", "", f"[bold]{table.trainable:,}[/]")
    verdict = "[dim]nothing published to compare with[/]"
    if table.published is not None:
        rows.add_row("", "unused", "counted in the published figure only", f"{table.unused:,}")
        rows.add_row("", "as published", "", f"[bold]{table.as_published:,}[/]")
        rows.add_row("", "published", escape(table.published.source), f"{table.published.parameters}")
        verdict = "[red]The count differs from the published one.[/]"
        if table.matches:
            verdict = "[green]The count equals the published one to its printed precision.[/]"
    console.print(rows)
    console.print(f"  {verdict}")


def _flops(console: Console, report: FlopCount) -> None:
    section(console, "Forward FLOPs", "a multiply-add is two; see dehvf_kit/costs/flops.py")
    table = grid("left", "right", "left")
    for name, count, unit in report.rows():
        table.add_row("", f"[cyan]{name}[/]", count, unit)
    console.print(table)
    console.print()
    table = grid("right", "right", "right", "right", "right", "right")
    table.add_row("", "text tokens", "text alone", "in memory", "", "as tokens", "", style="dim")
    for sample in report.samples:
        table.add_row("", *sample.cells())
    console.print(table)
    for line in (
        "One sample through the decoder, without the encoders: without an image, with",
        "it in memory (components included), and with its patches before the text,",
        "as LLaVA does.",
    ):
        console.print(f"  [dim]{line}[/]")


def _memory(console: Console, report: MemoryUsage) -> None:
    section(console, "Memory")
    table = grid("left", "right", "left")
    for row in report.rows():
        table.add_row("", *row)
    console.print(table)
