"""What all commands print with: tables, progress and JSON, for terminals and for pipes."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console
from rich.table import Table

from dehvf_kit._transformers import after_import

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PIPE_WIDTH = 110
PLAIN_INTERVAL_S = 10.0


def stdout(minimum_width: int = PIPE_WIDTH) -> Console:
    """A console on standard output; where that is not a terminal, `minimum_width` wide, so that lines do not fold."""
    if sys.stdout is not None and sys.stdout.isatty():  # None where it was closed: >&-
        return Console(highlight=False)
    width = None if "COLUMNS" in os.environ else minimum_width
    return Console(file=cast(IO[str], _Trimmed(sys.stdout)), width=width, highlight=False)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


class _Trimmed:
    """A text stream that drops the blanks tables leave at the ends of lines."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if self.stream is not None:
            self.stream.write(re.sub(r" +(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            self.stream.flush()


@contextmanager
def waiting(text: str, plain: bool = False) -> Iterator[None]:
    """A spinner on standard error while the block runs; without a terminal one line if `plain`, else nothing."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(text):
            yield
        return
    if plain:
        print(f"{text} ...", file=sys.stderr, flush=True)
    yield


def quiet_transformers() -> None:
    """Silence transformers' advice and progress bars, unless its own environment variable asks for them."""
    if "TRANSFORMERS_VERBOSITY" in os.environ:
        return
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # says that torchao's enums need no registering
    after_import({"transformers.utils.logging": _quiet})
    warnings.filterwarnings("ignore", module="transformers")


def _quiet() -> None:
    from transformers.utils import logging as own

    own.set_verbosity_error()
    own.disable_progress_bar()


def section(console: Console, title: str, note: str = "") -> None:
    """A heading with an empty line above."""
    console.print(f"\n[bold]{title}[/]" + (f"  [dim]{note}[/]" if note else ""))


def grid(*justify: str, indent: int = 2) -> Table:
    """A table without lines; one column for each of `left` and `right`."""
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(width=max(0, indent - 2))
    for place in justify:
        table.add_column(justify=place, overflow="fold")
    return table


class Reporter:
    """Progress of long work by stage: a bar on a terminal, elsewhere a line every `PLAIN_INTERVAL_S` seconds.

    Called as `reporter(stage, done, total, note)`, as often as convenient.
    """

    def __init__(self, bars: Progress | None) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}
        self.printed: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if self.bars is not None:
            if stage not in self.tasks:
                self.tasks[stage] = self.bars.add_task(stage, total=total, note=note)
            self.bars.update(self.tasks[stage], completed=done, total=total, note=note)
            return
        now = time.monotonic()
        started = self.started.setdefault(stage, now)
        finished = done >= total
        if finished or now - self.printed.get(stage, -PLAIN_INTERVAL_S) >= PLAIN_INTERVAL_S:
            self.printed[stage] = now
            count, tail = f": {done}/{total}" if total > 1 else "", f", {note}" if note else ""
            print(f"{stage}{count} ({now - started:.0f} s{tail})", file=sys.stderr, flush=True)


@contextmanager
def reporting() -> Iterator[Reporter]:
    """A reporter for the block, on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Reporter(None)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
