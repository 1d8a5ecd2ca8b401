"""`dehvf-kit report`: one self-contained page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit.cli.arguments import Json, Overrides
from dehvf_kit.cli.console import print_json, reporting


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or an adapter's.", show_default=False)],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page.", show_default="RUN/report.html")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", metavar="FILE", help="Answers that eval --output wrote.", show_default="the newest of this run"
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images over which the fuser's weights are averaged.")] = 64,
    maps: Annotated[int, typer.Option("--maps", min=1, help="Images whose memory contributions are mapped.")] = 6,
    worth: Annotated[
        int, typer.Option("--worth", min=0, help="Questions asked again with the fuser's weights replaced; 0: none.")
    ] = 64,
    as_json: Json = False,
) -> None:
    """Write the page and print what it lacks.

    Raises: AdapterError for what is not a run, DataError for broken files in it.
    """
    from dehvf_kit_report.write import write_report

    with reporting() as progress:
        found = write_report(folder, output, predictions, overrides or (), limit, maps, progress=progress, worth=worth)
    if as_json:
        print_json(found)
        return
    print(f"page: {found['page']}")
    for title, has in found["sections"].items():
        if not has:
            print(f"  missing: {title}; the page says why, and what makes it")
