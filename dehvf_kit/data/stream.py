"""Samples read from front to back, shuffled within a window, never held whole: what `DataConfig.stream` returns."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dehvf_kit.data.rows import Row, RowReader, read_rows, reading_of
from dehvf_kit.data.samples import Issue, Reading, Sample

LOOKED_AT = 1000
"""Rows at the beginning of a stream that are looked at before a run."""


@dataclass(frozen=True)
class SampleStream:
    """The samples of a split, read anew by every iteration. Raises, when read: DataError naming file and place.

    config: a data config with `columns`, `size` (samples of a pass) and `shuffle` (the window); rows: `rows(split, issues)`
    yields every row, and where `issues` is given adds faulty ones to it.
    """

    config: Any
    split: str
    rows: Callable[[str, list[Issue] | None], Iterator[Row]]

    def __len__(self) -> int:
        """As many as the recipe says."""
        return int(self.config.size)

    def __iter__(self) -> Iterator[Sample]:
        return self.read()

    def read(self, issues: list[Issue] | None = None) -> Iterator[Sample]:
        """One pass in the order of the files. issues: where given, faulty rows are added to it and excluded."""
        return read_rows(self.rows(self.split, issues), self._reader(issues), issues, distinct=False)

    def reading(self, rows: int | None = None) -> Reading:
        """The samples of the first `rows`, of all of them where None, with everything wrong with them."""
        issues: list[Issue] = []
        return reading_of(itertools.islice(self.rows(self.split, issues), rows), self._reader(issues), issues, distinct=False)

    def _reader(self, issues: list[Issue] | None) -> RowReader:
        return RowReader(self.config.columns, issues, "set data.columns", self.config.chooser)

    def shuffled(self, seed: int, turn: int, issues: list[Issue] | None = None) -> Iterator[Sample]:
        """One pass, each sample drawn from a window of `shuffle`; the order follows the seed and the number of the pass."""
        return draw(self.read(issues), self.config.shuffle, random.Random(f"{seed}:{turn}"))


def draw(samples: Iterable[Sample], window: int, chance: random.Random) -> Iterator[Sample]:
    """Samples in another order: each is drawn from the `window` that are at hand, the next one read takes its place."""
    held: list[Sample] = []
    for sample in samples:
        if len(held) < window:
            held.append(sample)
            continue
        place = chance.randrange(window)
        yield held[place]
        held[place] = sample
    chance.shuffle(held)
    yield from held
