"""What one run costs in memory and time: the peak of training, and seconds per step. FLOPs: costs/flops.py."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

STATM = Path("/proc/self/statm")
SAMPLING_INTERVAL_S = 0.01
WARM_UP_STEPS = 3


class StepClock:
    """Wraps a progress function and keeps the time between the ends of training steps."""

    def __init__(self, progress: Any) -> None:
        self.progress, self.ends = progress, []

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "training":
            self.ends.append(time.perf_counter())
        self.progress(stage, done, total, note)

    @property
    def seconds_per_step(self) -> float | None:
        """The median without the first steps; None for too short a run."""
        gaps = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        gaps = gaps[WARM_UP_STEPS:] or gaps
        return statistics.median(gaps) if gaps else None


class PeakMemory:
    """Memory inside the block: `rest` held at its start and `peak`, both in bytes; `how` names their source.

    On a GPU the allocator's figures. On Linux the process's own resident memory, without shared and mapped files,
    read every 10 ms. Elsewhere the operating system's peak since the process began.
    """

    def __enter__(self) -> PeakMemory:
        self.rest = self.peak = 0
        self.thread: threading.Thread | None = None
        if torch.cuda.is_available():
            self.how = "CUDA allocator"
            torch.cuda.reset_peak_memory_stats()
            self.rest = torch.cuda.memory_allocated()
        elif STATM.is_file():
            self.how = "resident memory"
            _give_back()
            self.rest = self.peak = _resident()
            self.stop = threading.Event()
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        else:
            self.how = "peak since the process began"
            self.rest = _maximum()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(SAMPLING_INTERVAL_S):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            self.peak = torch.cuda.max_memory_allocated()
        elif self.thread is not None:
            self.stop.set()
            self.thread.join()
        else:
            self.peak = _maximum()


def _resident() -> int:
    """Resident bytes of this process that are its own."""
    _, resident, shared, *_ = STATM.read_text().split()
    return (int(resident) - int(shared)) * resource.getpagesize()


def _give_back() -> None:
    """Hand what is free but still resident back to the system, where the C library can: else it hides what comes next."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _maximum() -> int:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
