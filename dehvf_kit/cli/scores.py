"""How `eval` and `score` print their figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.markup import escape

from dehvf_kit.cli.console import grid, stdout
from dehvf_kit.data.metrics.scores import Score, Scores
from dehvf_kit.errors import DataError
from dehvf_kit.utils import atomic


def show(scores: Scores) -> None:
    """The figures as a table, and the notes below it."""
    table = grid("left", "right", "left", "right")
    table.add_row("", "", "[bold]score[/]", "[bold]95% interval[/]", "[bold]count[/]")
    for score in scores.scores:
        interval = f"{_figure(score, score.low)} to {_figure(score, score.high)}"
        table.add_row("", escape(score.name), _figure(score, score.value), interval, f"{score.count:,}")
    stdout().print(table)
    for note in scores.notes:
        print(f"  {note}")


def _figure(score: Score, value: float) -> str:
    if not score.count:
        return "-"
    return f"{100 * value:.{score.digits}f}" + ("%" if score.percent else "")


def write_new(file: Path, text: str) -> None:
    """Write a file whole or not at all. Raises: DataError where it cannot be written."""
    try:
        atomic.write_text(file, text)
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror or error}") from error


def refuse_existing(*files: Path | None) -> None:
    """Raises: DataError for a file that is there already."""
    for file in files:
        if file is not None and file.exists():
            raise DataError(f"{file}: exists already; name another --output or --results")


def as_text(value: Any) -> str:
    """Plain data as a JSON file holds it."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
