"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL_S = 10.0


class Reporter:
    """Shows stages of work by name. `reporter(stage, done, total, note)` may be called as often as one likes."""

    def __init__(self, bars: Progress | None) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}
        self.printed: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if self.bars is not None:
            if stage not in self.tasks:
                self.tasks[stage] = self.bars.add_task(stage, total=total)
            self.bars.update(self.tasks[stage], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        started = self.started.setdefault(stage, now)
        finished = done >= total
        if finished or now - self.printed.get(stage, -PLAIN_INTERVAL_S) >= PLAIN_INTERVAL_S:
            self.printed[stage] = now
            count = f" {done}/{total}" if total > 1 else ""
            tail = f", {note}" if note else ""
            print(f"{stage}:{count} ({now - started:.0f} s{tail})", file=sys.stderr, flush=True)


@contextmanager
def reporting() -> Iterator[Reporter]:
    """A reporter for the block, on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Reporter(None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}[/]"),
    )
    with Progress(*columns, console=console) as bars:
        yield Reporter(bars)
