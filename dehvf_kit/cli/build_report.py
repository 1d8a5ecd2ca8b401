"""What `dehvf-kit build` prints: graph, parameters, FLOPs and memory of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from dehvf_kit.cli.console import grid, section
from dehvf_kit.costs.flops import FlopCount, encoders_read
from dehvf_kit.costs.memory import MemoryUsage
from dehvf_kit.costs.parameters import ParameterTable
from dehvf_kit.utils.units import ratio, si

if TYPE_CHECKING:
    from dehvf_kit.model.model import DehvfModel
    from dehvf_kit.recipe.graph import Graph

_PLACES = {"decoder": " on every decoder layer", "vision": " on every vision block", "input": " in the decoder's input"}


def print_report(
    console: Console,
    model: DehvfModel,
    parameters: ParameterTable,
    flops: FlopCount,
    memory: MemoryUsage,
    folder: Path | None,
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
    section(console, "Base models", "frozen; their configs alone were read")
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
    before = ""
    for term in table.terms:
        rows.add_row("", f"[cyan]{term.node if term.node != before else ''}[/]", term.term, f"{term.count:,}")
        before = term.node
    rows.add_row("", "[bold]sum[/]", "", f"[bold]{table.trainable:,}[/]")
    if table.published is not None:
        rows.add_row("", "unused", "counted in the published figure only", f"{table.unused:,}")
        rows.add_row("", "as published", "", f"[bold]{table.as_published:,}[/]")
        verdict = "[green]The count equals the published one to its printed precision.[/]"
        if not table.matches:
            verdict = "[red]The count differs from the published one.[/]"
        rows.add_row("", "published", escape(table.published.source), f"{table.published.parameters}")
        console.print(rows)
        console.print(f"  {verdict}")
        return
    console.print(rows)
    console.print("  [dim]nothing published to compare with[/]")


def _flops(console: Console, report: FlopCount) -> None:
    section(console, "Forward FLOPs", "a multiply-add is two; see dehvf_kit/costs/flops.py")
    table = grid("left", "right", "left")
    for name, count in report.vision.items():
        table.add_row("", f"[cyan]{name}[/]", "not known" if count is None else si(count, "FLOP"), "a picture")
    for name, cost in report.components.items():
        for count, unit in ((cost.per_step, "batch"), (cost.per_image, "picture"), (cost.per_token, "text token")):
            if count:
                table.add_row("", f"[cyan]{name}[/]", si(count, "FLOP"), f"a {unit}")
    table.add_row("", "[cyan]decoder[/]", si(report.decoder_per_token, "FLOP"), "a text token, its attention left out")
    console.print(table)
    console.print()
    table = grid("right", "right", "right", "right", "right", "right")
    table.add_row("", "text tokens", "text alone", "in memory", "", "as tokens", "", style="dim")
    for sample in report.samples:
        row = [str(sample.tokens), si(sample.text, "")]
        for count in (sample.memory, sample.prepended):
            row += ["-", "-"] if count is None else [si(count, ""), ratio(count, sample.text)]
        table.add_row("", *row)
    console.print(table)
    for line in (
        "One sample through the decoder, encoders left out: without a picture, with",
        "it in memory (components included), and with its patches before the text,",
        "as LLaVA does.",
    ):
        console.print(f"  [dim]{line}[/]")


def _memory(console: Console, report: MemoryUsage) -> None:
    section(console, "Memory")
    table = grid("left", "right", "left")
    table.add_row("", "adapter", si(report.adapter, "B"), "float32, as saved")
    training = si(report.gradients_and_optimiser, "B")
    table.add_row("", "gradients and AdamW", training, "while training; nothing for frozen weights")
    table.add_row("", "decoder", si(report.decoder, "B"), f"frozen weights, {report.dtype}")
    for name, count in report.vision.items():
        table.add_row("", name, si(count, "B"), "frozen weights")
    if report.factored_per_image:
        factored, built = report.factored_per_image, report.built_per_image
        table.add_row("", "memory, factored", si(factored, "B"), f"a picture, {report.dtype}: what the kit holds")
        table.add_row(
            "", "memory, built", si(built, "B"), f"a picture, K and V built: {built / factored:.0f} times that"
        )
    if report.prepended_cache_per_image:
        cache = si(report.prepended_cache_per_image, "B")
        table.add_row("", "patches as tokens", cache, "a picture, key/value cache of LLaVA's way")
    console.print(table)
