"""A run's folder: who works in it, what is in it, and whether it may be used."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import IO, Any

from dehvf_kit.errors import DehvfError, TrainingError
from dehvf_kit.training.checkpoints import checkpoints
from dehvf_kit.training.run_record import RECORD
from dehvf_kit.utils import atomic

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

ADAPTER, CHECKPOINTS, LOG, LOCK = "adapter", "checkpoints", "log.jsonl", ".lock"


class RunFolder:
    """One process's hold on a run's folder; inside `with` no other run can use it, and what a kill left is gone.

    The adapter is the last thing a run writes: where it is, the run is finished. resume: go on with what is there. writes:
    work in it; of several processes the first does, the others look.
    Raises: DehvfError where the folder holds a run already (without resume), is not there (with it), is another
    process's, or cannot be written.
    """

    def __init__(self, place: Path, resume: bool, writes: bool = True) -> None:
        self.place, self.resume = place, resume
        self.checkpoints, self.adapter = place / CHECKPOINTS, place / ADAPTER
        self._lock: IO[str] | None = None
        self.writes = writes

    @property
    def finished(self) -> bool:
        """Whether the run's adapter is there."""
        return self.adapter.exists()

    def __enter__(self) -> RunFolder:
        there = self.place.exists()
        if self.resume and not there:
            raise DehvfError(f"{self.place}: holds no checkpoint to resume from; leave out --resume")
        if not self.resume and (self.finished or checkpoints(self.checkpoints)):
            raise DehvfError(f"{self.place}: holds a run already; name another folder, or go on with it by --resume")
        if self.writes:
            try:
                self.place.mkdir(parents=True, exist_ok=True)
                self._take()
                for folder in (self.place, self.checkpoints):
                    atomic.clean_up(folder)
            except OSError as error:
                raise TrainingError(f"{self.place}: cannot be written: {error.strerror or error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        """Let go; a folder in which nothing was begun goes too."""
        if self._lock is None:
            return
        if not (self.place / RECORD).exists():
            with contextlib.suppress(OSError):
                (self.place / LOCK).unlink()
                self.place.rmdir()
        self._lock.close()

    def _take(self) -> None:
        """A POSIX record lock: it ends with the process, however that ends, and forked workers do not inherit it."""
        lock = (self.place / LOCK).open("a+", encoding="ascii")
        try:
            if fcntl is not None:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise TrainingError(
                f"{self.place}: another run (process {owner}) is working in it; let it finish, or name another folder"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Raises: TrainingError."""
        try:
            atomic.write_text(self.place / LOG, "".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            raise TrainingError(f"{self.place / LOG}: cannot be written: {error.strerror or error}") from error

    def read_log(self) -> list[dict[str, Any]]:
        """The log of a finished run; empty where it cannot be read."""
        try:
            return [json.loads(line) for line in (self.place / LOG).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            return []
