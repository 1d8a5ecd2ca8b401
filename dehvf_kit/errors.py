"""The kit's errors. Each message says where, what was given and what would do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class DehvfError(Exception):
    """A mistake the user can mend. The command line prints its message alone, without a traceback, and exits with `exit_status`."""

    exit_status = 1


class ShapeError(DehvfError, ValueError):
    """A tensor has another shape than the component was built for."""


class AdapterError(DehvfError):
    """A saved adapter is incomplete, altered, or belongs to other base models."""


class DecoderError(DehvfError):
    """A decoder offers no place where memory can be added, or another than its description says."""


class VisionError(DehvfError):
    """A vision encoder does not yield a sequence of patch tokens per layer."""


class DataError(DehvfError):
    """A data set or one of its samples cannot be read."""


class TrainingError(DehvfError):
    """A run that cannot go on, or not from where it is; what it saved before is intact."""


class Stopped(DehvfError):
    """A run that was asked to stop by a signal, and did after saving. `exit_status` is 128 and the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number


class ImageError(DataError):
    """An image is missing, broken, or of a format that the kit does not read (`docs/bad_files.md`)."""


PictureError = ImageError
"""The name of `ImageError` before 0.1.0, kept for one release."""


class PluginError(DehvfError):
    """Code of a plugin raised something of its own, or did not keep to what its config class says."""


class RemoteCodeWarning(UserWarning):
    """Code that comes with a checkpoint is about to be run, because a recipe says `trust_remote_code: true`."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong in a recipe: `path` is its place (`graph.fuser.type`), `message` what was given and what fits."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class RecipeError(DehvfError, ValueError):
    """A recipe that cannot be built; `faults` lists everything that is wrong with it."""

    def __init__(self, faults: Sequence[Fault], source: str = "recipe") -> None:
        self.faults = tuple(faults)
        self.source = source
        lines = [f"{source}: {fault}" for fault in self.faults]
        super().__init__("\n".join(lines))


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the option nearest to `name`, or a full stop where none is near."""
    near = difflib.get_close_matches(str(name), [str(option) for option in options], n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else "."


def shown(value: object) -> str:
    """A value as a message prints it: what Python writes, cut to one short line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a whole number of too many digits
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 100 else f"{text[:97]}..."


def listing(options: Iterable[str]) -> str:
    """Options in one line, sorted: `a, b, c`; `none` where there are none."""
    return ", ".join(sorted(str(option) for option in options)) or "none"
