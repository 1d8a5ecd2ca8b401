"""`dehvf-kit compare`: several recipes trained and scored with identical data and budget, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dehvf_kit.cli.arguments import Json, Words, split_words
from dehvf_kit.cli.console import grid, print_json, stdout
from dehvf_kit.errors import DehvfError

if TYPE_CHECKING:
    from dehvf_kit_compare.rules import Tuning


def compare(
    words: Words,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of runs and table.")] = Path("runs/compare"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs per recipe, with seeds 0, 1, ...")] = 3,
    tune: Annotated[
        bool, typer.Option("--tune", help="Tune each recipe's learning rate first, by the same tuning protocol.")
    ] = False,
    rate_factors: Annotated[
        str, typer.Option("--rate-factors", help="The grid of --tune, times each recipe's base learning rate.")
    ] = "0.25,0.5,1,2,4",
    rates: Annotated[
        str, typer.Option("--rates", help="The grid of --tune in absolute base learning rates.", show_default=False)
    ] = "",
    strengths: Annotated[
        str,
        typer.Option(
            "--strengths",
            help="Also tune the strength with which a method acts on the decoder: factors such as 0.3,1,3.",
            show_default=False,
        ),
    ] = "",
    scales: Annotated[str, typer.Option("--scales", hidden=True, help="Earlier name of --strengths.")] = "",
    fraction: Annotated[
        float, typer.Option("--tune-fraction", min=0.001, max=1, help="Share of the steps that a tuning run makes.")
    ] = 0.2,
    validation: Annotated[
        float, typer.Option("--validation", min=0.001, max=0.9, help="Share of training images that tuning is scored on.")
    ] = 0.1,
    side_by_side: Annotated[int, typer.Option("--jobs", min=1, help="Runs side by side.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads per run.", show_default="cores / jobs")] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="FIELD", help="Let a field differ between the recipes.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.001, help="CPU hours of all runs in sum.", show_default="no bound")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run, report and draw; the exit status is 1 where a run failed.

    Raises: DehvfError for recipes that cannot be compared, before anything runs, and where the CPU hours are used up.
    """
    from dehvf_kit_compare import comparison
    from dehvf_kit_compare.table import cells

    files, overrides = split_words(words)
    if len(files) == 1:
        _say("note: one recipe alone is compared with nothing; name others too, now or when this command is given again")
    strengths = strengths or scales
    tuning = _tuning(rate_factors, rates, strengths, fraction, validation) if tune or rates or strengths else None
    run = comparison.compare(
        files,
        output,
        seeds=seeds,
        tuning=tuning,
        overrides=overrides,
        side_by_side=side_by_side,
        threads=threads,
        allow=allow or (),
        hours=hours,
        say=_say,
    )
    found = dict(run.table)
    if as_json:
        print_json(found)
    else:
        head, rows = cells(found)
        shown = grid("left", *["right"] * (len(head) - 1))
        shown.add_row("", *(f"[bold]{text}[/]" for text in head))
        for row in rows:
            shown.add_row("", *row)
        stdout(minimum_width=200).print(shown)
        print(f"table:   {output / 'comparison.md'} (and .csv, .json)")
        if run.figure:
            print(f"figure:  {run.figure}")
    for error in found["errors"]:
        print(f"failed: {error}", file=sys.stderr)
    if found["errors"]:
        raise typer.Exit(1)


def _tuning(rate_factors: str, rates: str, strengths: str, fraction: float, validation: float) -> Tuning:
    """The tuning protocol that the options describe. Raises: DehvfError for what is not a list of positive numbers."""
    from dehvf_kit_compare.job import HoldOut
    from dehvf_kit_compare.rules import Tuning

    factors = _numbers("--rate-factors", rate_factors)
    return Tuning(
        factors=factors,
        rates=_numbers("--rates", rates) if rates else (),
        strengths=_numbers("--strengths", strengths) if strengths else (),
        fraction=fraction,
        hold_out=HoldOut(validation, Tuning.hold_out.questions),
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(not 0 < value < float("inf") for value in values) or len(set(values)) < len(values):
        raise DehvfError(f"{option}: given '{text}'; wants different positive numbers, such as 0.25,0.5,1,2,4")
    return values


def _say(line: str) -> None:
    """A line of progress, on standard error."""
    print(line, file=sys.stderr, flush=True)
