"""`dehvf-kit graph`: the wiring of a recipe, drawn."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile
from dehvf_kit.cli.console import print_json, stdout, waiting
from dehvf_kit.errors import DehvfError, did_you_mean
from dehvf_kit.utils.atomic import check_new_files, write_output

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from dehvf_kit_report.drawing.wiring import Box, Drawing

ENDINGS = {".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid", ".txt": "terminal"}
FORMATS = ("terminal", "mermaid", "svg")
COLUMN = 38


def graph(
    recipe: RecipeFile,
    overrides: Overrides = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="terminal, mermaid or svg.",
            show_default="from FILE's ending, else terminal",
            autocompletion=lambda: list(FORMATS),
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it here.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw. Raises: RecipeError listing every fault, DehvfError for an unknown format or a file that cannot be written."""
    if kind is not None and kind not in FORMATS:
        raise DehvfError(f"--format {kind}: one of {', '.join(FORMATS)}{did_you_mean(kind, FORMATS)}")
    if output is not None:
        check_new_files({}, {"--output": output})
    kind = kind or ENDINGS.get(output.suffix.lower() if output else "", "terminal")
    with waiting(f"Reading {recipe}", plain=True):
        from dehvf_kit.recipe.recipe import load_recipe
        from dehvf_kit_report.drawing.wiring import draw_recipe

        drawing = draw_recipe(load_recipe(recipe, overrides or ()))
    if output is not None:
        write_output(output, _text(drawing, kind))
    if as_json:
        print_json({**asdict(drawing), "file": str(output) if output else None})
    elif output is not None:
        print(f"graph: {output}")
    elif kind == "terminal":
        _show(stdout(), drawing)
    else:
        print(_text(drawing, kind), end="")


def _text(drawing: Drawing, kind: str) -> str:
    if kind == "svg":
        from dehvf_kit_report.drawing.svg import svg

        return svg(drawing)
    if kind == "mermaid":
        from dehvf_kit_report.drawing.mermaid import mermaid

        return mermaid(drawing)
    import io

    from rich.console import Console

    held = io.StringIO()
    _show(Console(file=held, width=118, highlight=False), drawing)
    return "\n".join(line.rstrip() for line in held.getvalue().splitlines()) + "\n"


def _show(console: Console, drawing: Drawing) -> None:
    """Rows of boxes, top to bottom; a box lists its input ports with their sources, then its outputs."""
    from rich.columns import Columns
    from rich.markup import escape

    from dehvf_kit_report.drawing.layout import Link, ranks_of

    console.print(f"[bold]{escape(drawing.title)}[/]  [dim]port <- node.port; below it each output with its axes[/]")
    ends = [(e.target, e.source) if e.loop else (e.source, e.target) for e in drawing.edges]
    rank = ranks_of([box.name for box in drawing.boxes], [Link(*pair) for pair in ends])
    for row in sorted(set(rank.values())):
        boxes = [box for box in drawing.boxes if rank[box.name] == row]
        columns = max(1, min(len(boxes), console.width // COLUMN))
        panels = [_panel(drawing, box, console.width // columns - 1) for box in boxes]
        console.print(Columns(panels, padding=(0, 1, 0, 0)))


def _panel(drawing: Drawing, box: Box, width: int) -> RenderableType:
    from rich.markup import escape
    from rich.panel import Panel

    trained = [f"{box.parameters:,} trained"] if box.parameters else []
    lines = [f"[dim]{escape(', '.join([*box.lines, *trained]))}[/]"]
    for edge in drawing.edges:
        if edge.target == box.name:
            arrow = "<~" if edge.attaches or edge.loop else "<-"
            name = edge.source if edge.attaches else f"{edge.source}.{edge.source_port}"
            lines.append(f"{escape(edge.target_port)} {arrow} {escape(name)}")
    for port in box.gives:
        lines.append(f"[cyan]{escape(port.name)}[/] [dim]{escape(' '.join(port.axes))}[/]")
    times = f" x {box.repeated}" if box.repeated > 1 else ""
    colour = {"node": "blue", "batch": "dim"}.get(box.kind, "white")
    title = f"[bold]{escape(box.name)}[/]{times}"
    return Panel("\n".join(lines), title=title, title_align="left", width=min(width, 76), border_style=colour)
