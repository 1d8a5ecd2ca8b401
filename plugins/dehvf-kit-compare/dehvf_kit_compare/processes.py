"""Runs each job in its own process: one that crashes or runs out of memory ends alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dehvf_kit.errors import DehvfError
from dehvf_kit.utils.atomic import writing
from dehvf_kit_compare.cpu_hours import CpuHours
from dehvf_kit_compare.job import LOG, RESULT, Job, finished_result, read_json, write_job

POLL_INTERVAL_S = 0.2
RUNNER = "dehvf_kit_compare.single_run"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its result, or why there is none."""

    job: Job
    result: dict[str, Any] | None
    error: str = ""
    seconds: float = 0.0
    known: bool = False


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: float


def run_jobs(
    jobs: Sequence[Job],
    output: Path,
    lock: int | None,
    side_by_side: int = 1,
    started: Callable[[Job, Path], None] = lambda job, log: None,
    ended: Callable[[Outcome], None] = lambda outcome: None,
    hours: CpuHours | None = None,
) -> list[Outcome]:
    """Run what is not finished yet, `side_by_side` at a time, and return every outcome in the order of the jobs.

    lock: the open lock file, which the processes hold too; hours: when they are over, nothing more begins, and what has begun ends.

    Raises: DehvfError where a finished run has other settings, OutOfHours where some have not run for want of hours.
    """
    outcomes: dict[int, Outcome] = {}
    waiting = []
    for place, job in enumerate(jobs):
        result = finished_result(job, output)
        if result is None:
            waiting.append(place)
        else:
            outcomes[place] = Outcome(job, result, known=True)
            ended(outcomes[place])
    running: dict[int, _Running] = {}
    try:
        while running or (waiting and not (hours and hours.over)):
            while waiting and len(running) < side_by_side and not (hours and hours.over):
                place = waiting.pop(0)
                running[place] = _start(jobs[place], output, lock)
                started(jobs[place], jobs[place].working_folder(output) / LOG)
            for place in [place for place, one in running.items() if one.process.poll() is not None]:
                outcomes[place] = _outcome(running.pop(place), output)
                if hours:
                    hours.note()
                ended(outcomes[place])
            if running:
                time.sleep(POLL_INTERVAL_S)
    finally:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.wait()
    if waiting and hours:
        raise hours.error()
    return [outcomes[place] for place in range(len(jobs))]


def _start(job: Job, output: Path, lock: int | None) -> _Running:
    folder = job.working_folder(output)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed or failed
    folder.mkdir(parents=True)
    file = write_job(job, folder)
    threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", RUNNER, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **threads},
            pass_fds=() if lock is None else (lock,),
        )
    return _Running(job, process, time.monotonic())


def _outcome(one: _Running, output: Path) -> Outcome:
    seconds = time.monotonic() - one.began
    folder, log = one.job.folder(output), one.job.working_folder(output) / LOG
    if one.process.returncode == 0 and folder.is_dir():
        return Outcome(one.job, read_json(folder / RESULT), seconds=seconds)
    return Outcome(one.job, None, f"{_reason(one.process.returncode, log)} (log: {log})", seconds)


def _reason(status: int, log: Path) -> str:
    if status < 0:
        likely = ", out of memory perhaps" if status == -9 else ""
        return f"killed by signal {-status}{likely}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else f"ended with status {status}"


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Keep a folder to one comparison at a time; yields the lock's file descriptor (None where there is no flock).

    Runs hold it too, so one that outlived its comparison is noticed. Raises: DehvfError where another holds it.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    with file:
        try:
            import fcntl
        except ImportError:
            yield None
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DehvfError(f"{folder}: another comparison, or a run of one, is at work in it; wait for it") from error
        yield file.fileno()
