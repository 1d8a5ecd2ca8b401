"""How scores are printed."""

from __future__ import annotations

from rich.markup import escape

from dehvf_kit.cli.console import grid, stdout
from dehvf_kit.data.metrics.scores import Score, Scores


def show_scores(scores: Scores) -> None:
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
