"""`dehvf_kit.compare`: a comparison from Python, as `dehvf-kit compare` runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.plugin_manager import loaded_files
from dehvf_kit.recipe.recipe import Recipe, as_recipe
from dehvf_kit.utils.frames import frame
from dehvf_kit_compare import compare as runs
from dehvf_kit_compare.cpu_hours import CpuHours, OutOfHours
from dehvf_kit_compare.figure import draw
from dehvf_kit_compare.rules import Tuning
from dehvf_kit_compare.table import table, write_table

FIGURE = "comparison.png"


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    folder: of its runs, `comparison.md`, `.csv` and `.json`; table: what is in `comparison.json`; figure: the drawing, or None.
    """

    folder: Path
    table: Mapping[str, Any]
    figure: Path | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each recipe, in their order."""
        return list(self.table["rows"])

    @property
    def errors(self) -> list[str]:
        """The runs that failed, each with its reason."""
        return list(self.table["errors"])

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame. Raises: DehvfError without pandas."""
        return frame(self.rows)


def compare(
    recipes: Sequence[Recipe | Mapping[str, Any] | str | Path],
    output: str | Path = "runs/compare",
    *,
    seeds: int = 3,
    tuning: Tuning | None = None,
    overrides: Sequence[str] = (),
    side_by_side: int = 1,
    threads: int | None = None,
    allow: Sequence[str] = (),
    hours: CpuHours | float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Train and score several recipes with identical data and budget. A run that fails is among the errors; the others continue.

    Args:
        recipes: recipes, their plain data, or files' paths; the first is the reference of the differences.
        output: the folder of runs and table; the same call goes on with one that was interrupted.
        seeds: runs per recipe, with seeds 0, 1, ...
        tuning: `dehvf_kit_compare.rules.Tuning()` tunes each recipe first, by the same protocol.
        overrides: `key=value` changes to all of them.
        side_by_side: runs at a time.
        threads: per run; cores / side_by_side where left out.
        allow: fields that may differ between the recipes.
        hours: CPU hours of all runs in the folder, those of earlier calls too; None sets no bound.
        say: takes lines of progress.

    Raises:
        DehvfError: for recipes that cannot be compared, before anything runs, with the faults of all of them.
        OutOfHours: where the hours are used up and runs are left; what is known is in the table.
    """
    found, faults = [], []
    for recipe in recipes:
        try:
            found.append(as_recipe(recipe, overrides))
        except DehvfError as error:
            faults.append(str(error))
    if faults or not found:
        raise DehvfError("\n".join(dict.fromkeys(faults)) or "name at least one recipe, a .yaml file")
    folder = Path(output)
    settings = runs.Settings(
        seeds=seeds,
        tuning=tuning,
        side_by_side=side_by_side,
        threads=threads or max(1, (os.cpu_count() or 1) // side_by_side),
        allowed=tuple(allow),
        plugins=tuple(map(str, loaded_files())),
        hours=CpuHours.of(folder, hours) if isinstance(hours, int | float) else hours,
    )
    rows: dict[str, Any] = {"rows": []}

    def update(known: list[runs.MethodRuns]) -> None:
        nonlocal rows
        rows = table(known, settings)
        write_table(rows, folder)

    try:
        update(runs.compare(found, folder, settings, say, update))
    except OutOfHours:
        _drawn(rows, folder / FIGURE, say)
        raise
    return Comparison(folder, rows, _drawn(rows, folder / FIGURE, say))


def _drawn(rows: dict[str, Any], file: Path, say: Callable[[str], None]) -> Path | None:
    """The figure, or in one line why there is none."""
    if not any("accuracy" in row for row in rows["rows"]):
        return None
    try:
        draw(rows, file)
    except DehvfError as error:
        say(f"no figure: {error}")
        return None
    return file
