"""A bound on the CPU time of a comparison's runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dehvf_kit.errors import DehvfError
from dehvf_kit.utils.atomic import is_file, write_output
from dehvf_kit_compare.job import read_json

FILE = "cpu_seconds.json"


class OutOfHours(DehvfError):
    """The runs of a folder have used the CPU hours that they were given."""


@dataclass(frozen=True)
class CpuHours:
    """CPU time of the runs in a folder, kept there, so that an interrupted comparison does not begin to count again.

    file: where the CPU seconds are kept; seconds: how many there may be; before: of earlier calls; children: of this process's
    children before it began.
    """

    file: Path
    seconds: float
    before: float
    children: float

    @classmethod
    def of(cls, folder: Path, hours: float) -> CpuHours:
        """Raises: DehvfError where the record of the folder's earlier runs is broken."""
        file = folder / FILE
        before = read_json(file) if is_file(file) else 0.0
        if not isinstance(before, int | float) or isinstance(before, bool):
            raise DehvfError(f"{file}: wants the CPU seconds of the runs beside it, a number; remove it to count them anew")
        return cls(file, hours * 3600, before, _children())

    @property
    def used(self) -> float:
        """CPU seconds of all runs that ended."""
        return self.before + _children() - self.children

    @property
    def over(self) -> bool:
        """Whether they are used up, so that no further run begins."""
        return self.used >= self.seconds

    def note(self) -> None:
        """Keep what is used in the folder."""
        write_output(self.file, f"{self.used:.1f}\n")

    def error(self) -> OutOfHours:
        """What says that they are used up."""
        return OutOfHours(
            f"{self.file.parent}: {self.used / 3600:.1f} CPU hours are used, of {self.seconds / 3600:g}; what is finished is "
            "kept there; go on with the same command and a larger --hours"
        )


def _children() -> float:
    """CPU seconds of the processes that this one started and that ended."""
    used = os.times()
    return used.children_user + used.children_system
