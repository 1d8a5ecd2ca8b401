"""The command lines of `init` and `new-plugin`: arguments only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json, Overrides

KINDS = ["vision", "decoder", "component", "data"]


def add_starting_commands(app: typer.Typer) -> None:
    """Hang both commands on the command line."""
    app.command()(init)
    app.command(name="new-plugin")(new_plugin)


def init(
    overrides: Overrides = None,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", help="A name from dehvf-kit list, a folder or a hub id.", show_default="asks"),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option("--vision", help="A vision encoder, named likewise, or TYPE:MODEL.", show_default="asks"),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A file, a folder, a data set's type, or none.", show_default="asks")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The recipe.", show_default="DECODER_VISION.yaml"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask three questions and write a recipe that passes `check`; never overwrites."""
    from dehvf_kit.cli.init import run

    run(decoder, vision, data, output, overrides or [], as_json)


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case words: my-fuser.", show_default=False)],
    kind: Annotated[
        str,
        typer.Option(
            "--kind", help="vision, decoder, component or data.", show_default=False, autocompletion=lambda: KINDS
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the package's folder goes.")
    ] = Path("."),
    as_json: Json = False,
) -> None:
    """Write an installable plugin whose contract test passes at once; never overwrites."""
    from dehvf_kit.cli.new_plugin import run

    run(name, kind, output, as_json)
