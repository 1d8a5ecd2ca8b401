"""The command lines of `graph`, `report` and `chat`: arguments only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json, Overrides, RecipeFile

FORMATS = ["terminal", "mermaid", "svg"]


def add_page_commands(app: typer.Typer) -> None:
    """Hang the commands on the command line."""
    app.command()(graph)
    app.command()(report)
    app.command()(chat)


def graph(
    recipe: RecipeFile,
    overrides: Overrides = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="terminal, mermaid or svg.",
            show_default="as FILE ends, else terminal",
            autocompletion=lambda: FORMATS,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it here.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a recipe's wiring: nodes, ports, named axes with their sizes, towers; needs both configs, never weights."""
    from dehvf_kit.cli.graph import run

    run(recipe, overrides or [], kind, output, as_json)


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or an adapter's.", show_default=False)],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page.", show_default="RUN/report.html")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="Answers that eval --output kept.",
            show_default="RUN/predictions.jsonl",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Pictures that the fuser's weights are averaged over.")
    ] = 64,
    maps: Annotated[int, typer.Option("--maps", min=1, help="Pictures that are followed into the decoder.")] = 6,
    as_json: Json = False,
) -> None:
    """Write one page about a run: graph, curves, scores, answers, what each layer reads and holds, how to repeat it."""
    from dehvf_kit.cli.report import run

    run(folder, overrides or [], output, predictions, limit, maps, as_json)


def chat(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER [ADAPTER] [KEY=VALUE]...",
            help="One adapter's folder, or two to compare, and fields to change in both recipes.",
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Where to listen; 0: any free port.")] = 7860,
    max_upload_mb: Annotated[
        float, typer.Option("--max-upload-mb", min=0.01, max=1000, help="MiB that a picture's file may have.")
    ] = 20,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser too.")] = False,
) -> None:
    """Serve a page on this machine: drop a picture, ask, watch the answer grow and which vision layers were read."""
    from dehvf_kit.cli.chat import run

    run(words, port, max_upload_mb, open_browser)
