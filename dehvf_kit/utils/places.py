"""What is at a path that a user gave, and whether a command can write there; looked at before the work."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from dehvf_kit.errors import DehvfError
from dehvf_kit.utils.atomic import beside

LONGEST = 200
"""Characters of a path that a message shows."""


def exists(path: Path) -> bool:
    """Whether anything is there. Raises: DehvfError where nobody can look, as at a path that is too long."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether a file is there. Raises: DehvfError as `exists` does."""
    return stat.S_ISREG(_mode(path) or 0)


def is_folder(path: Path) -> bool:
    """Whether a folder is there. Raises: DehvfError as `exists` does."""
    return stat.S_ISDIR(_mode(path) or 0)


def _mode(path: Path) -> int | None:
    """Kind and permissions of what is at a path; None where nothing is."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # too long a name, a folder that is closed, links in a circle, a null character
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        shown = str(path) if len(str(path)) <= LONGEST else f"{str(path)[:LONGEST]}..."
        raise DehvfError(f"{shown}: cannot be looked at: {reason}") from error


def check_new_files(files: Mapping[str, Path | None], replaced: Mapping[str, Path] | None = None) -> None:
    """Refuse files that cannot be written, before anything is computed.

    Args:
        files: by option, files to be made; None where the option was not given.
        replaced: by option, files that will be written anew whether they are there or not.

    Raises:
        DehvfError: for a file that is there already, a folder that is missing or cannot be written into, and one file that
            two options name.
    """
    named = {option: file for option, file in files.items() if file is not None}
    for option, file in named.items():
        if os.path.lexists(file):
            raise DehvfError(f"{file}: exists already; name another --output or --results")
        _try(file, option)
    for option, file in (replaced or {}).items():
        _try(file, option)
    taken: dict[str, str] = {}
    for option, file in [*named.items(), *(replaced or {}).items()]:
        earlier = taken.setdefault(os.path.normcase(os.path.realpath(file)), option)
        if earlier != option:
            raise DehvfError(f"{file}: both {earlier} and {option} would write it; name two files")


def _try(file: Path, option: str) -> None:
    """Make a file beside it, as writing does, and take it away."""
    trial = beside(file)
    try:
        with trial.open("xb"):
            pass
        trial.unlink()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise DehvfError(f"{option} {file}: cannot be written: {reason}; name another place") from error
