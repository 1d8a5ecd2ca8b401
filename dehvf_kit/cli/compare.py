"""`dehvf-kit compare`: several recipes trained and scored with identical data and budget, side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dehvf_kit.cli.console import grid, print_json, stdout
from dehvf_kit.errors import DehvfError

if TYPE_CHECKING:
    from dehvf_kit.evaluation.compare.rules import Tuning

PICTURE = "comparison.png"


def run(
    words: Sequence[str],
    output: Path,
    seeds: int,
    tune: bool,
    rate_factors: str,
    rates: str,
    scales: str,
    fraction: float,
    validation: float,
    side_by_side: int,
    threads: int | None,
    allowed: Sequence[str],
    as_json: bool,
) -> int:
    """Run, report and draw; the exit status is 1 where a run failed. words: recipes and KEY=VALUE overrides.

    Raises: DehvfError for recipes that cannot be compared, before anything runs.
    """
    from dehvf_kit.evaluation.compare.compare import MethodRuns, Settings, compare
    from dehvf_kit.evaluation.compare.table import cells, table, write_report
    from dehvf_kit.recipe.plugin_manager import loaded_files
    from dehvf_kit.recipe.several import load_all

    recipes = load_all(words)
    tuning = tuning_of(rate_factors, rates, scales, fraction, validation) if tune or rates or scales else None
    threads = threads or max(1, (os.cpu_count() or 1) // side_by_side)
    settings = Settings(seeds, tuning, side_by_side, threads, tuple(allowed), tuple(map(str, loaded_files())))

    def update(methods: list[MethodRuns]) -> None:
        write_report(table(methods, settings), output)

    methods = compare(recipes, output, settings, say, update)
    found = table(methods, settings)
    write_report(found, output)
    drawn = _draw(found, output / PICTURE)
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
        if drawn:
            print(f"picture: {output / PICTURE}")
    for error in found["errors"]:
        print(f"failed: {error}", file=sys.stderr)
    return int(bool(found["errors"]))


def tuning_of(rate_factors: str, rates: str, scales: str, fraction: float, validation: float) -> Tuning:
    """The rule of tuning from what was typed. Raises: DehvfError for what is no list of positive numbers."""
    from dehvf_kit.evaluation.compare.job import HoldOut
    from dehvf_kit.evaluation.compare.rules import Tuning

    factors = _numbers("--rate-factors", rate_factors)
    absolute, strengths = (
        _numbers(option, text) if text else () for option, text in (("--rates", rates), ("--scales", scales))
    )
    return Tuning(factors, absolute, strengths, fraction, HoldOut(validation, Tuning.hold_out.questions))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(not 0 < value < float("inf") for value in values) or len(set(values)) < len(values):
        raise DehvfError(f"{option}: given '{text}'; wants different positive numbers, such as 0.25,0.5,1,2,4")
    return values


def say(line: str) -> None:
    """A line of progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def _draw(found: dict, file: Path) -> bool:
    """The picture, or one line why there is none."""
    from dehvf_kit.evaluation.compare.figure import draw

    if not any("accuracy" in row for row in found["rows"]):
        return False
    try:
        draw(found, file)
    except DehvfError as error:
        say(f"no picture: {error}")
        return False
    return True
