"""Which cached features a running process needs, so that another one with a cache limit does not remove them.

A process lists its files in `in-use-ID` at the root of the cache and holds a lock on that list (POSIX `flock`), which ends with the
process however that ends. A list that nobody holds is removed.
"""

from __future__ import annotations

import contextlib
import os
import uuid
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: features of running processes are not protected there
    fcntl = None  # type: ignore[assignment]

PREFIX, ROOM = "in-use-", ".room"


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Inside, no other process makes room or marks files; no protection where the folder cannot be written."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(stack.enter_context((root / ROOM).open("a")), fcntl.LOCK_EX)
        yield


def mark(root: Path, files: Iterable[Path], owner: object) -> None:
    """Protect files while `owner` lives; does nothing where the folder cannot be written."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        list_file = root / f"{PREFIX}{uuid.uuid4().hex}"
        opened = list_file.open("w", encoding="utf-8")
        fcntl.flock(opened, fcntl.LOCK_EX)
        weakref.finalize(owner, _release, list_file, opened, os.getpid())
        opened.write("".join(f"{file.relative_to(root)}\n" for file in files))
        opened.flush()


def in_use(root: Path) -> set[Path]:
    """The files that running processes have marked; lists of ended ones are removed."""
    found: set[Path] = set()
    for list_file in root.glob(f"{PREFIX}*") if fcntl is not None else ():
        with contextlib.suppress(OSError), list_file.open("r+", encoding="utf-8") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found |= {root / line for line in opened.read().splitlines()}
            else:
                list_file.unlink()
    return found


def _release(list_file: Path, opened: IO[str], process: int) -> None:
    """A forked worker drops its copy without releasing what its parent still needs."""
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            list_file.unlink(missing_ok=True)
            opened.close()
