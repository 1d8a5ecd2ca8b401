"""Interleaved timing: every subject once a repetition, in rotated order, so that a busy machine hits all alike."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Case:
    """Something to time: `reset` runs before each repetition and `run` is timed; in every `every`-th repetition only."""

    run: Callable[[], Any]
    reset: Callable[[], Any] = lambda: None
    every: int = 1


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios within a repetition, and the 95 % interval of that median (bootstrap over repetitions)."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory: fetching pages from the system anew would cost a subject that holds large tensors more.

    The C library takes no mmap threshold over 32 MiB, so mmap is switched off by the number of maps. True where it worked.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, LARGEST))


def interleave(cases: Mapping[str, Case], repetitions: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of every repetition of every case, nan where it was left out.

    Repetition r begins with case r, so that none always comes first or after a pause.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    was_collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for repetition in range(-warm_up, repetitions):
            first = repetition % len(names)
            for name in names[first:] + names[:first]:
                if repetition % cases[name].every:
                    seconds[name] += [math.nan] * (repetition >= 0)
                    continue
                cases[name].reset()
                _wait()
                start = time.perf_counter()
                cases[name].run()
                _wait()
                if repetition >= 0:
                    seconds[name].append(time.perf_counter() - start)
    finally:
        if was_collecting:
            gc.enable()
    return seconds


def peak_memory(case: Case) -> int:
    """Bytes of CUDA memory at the fullest moment of a run, the decoder and what all subjects hold included."""
    case.reset()
    torch.cuda.reset_peak_memory_stats()
    case.run()
    return torch.cuda.max_memory_allocated()


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratio(seconds: Sequence[float], base: Sequence[float], draws: int = 2000) -> Ratio:
    """How many times as long as the base, repetition by repetition."""
    paired = [a / b for a, b in zip(seconds, base, strict=True) if not math.isnan(a / b)]
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(paired, k=len(paired))) for _ in range(draws))
    return Ratio(statistics.median(paired), medians[int(0.025 * draws)], medians[int(0.975 * draws)])


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    seconds = [second for second in seconds if not math.isnan(second)]
    if len(seconds) < 2:
        return seconds[0], seconds[0], seconds[0]
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, median, high


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on; the load says how busy the machine was."""
    import transformers

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": load(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def load() -> list[float]:
    """How many processes wanted to run, in the last 1, 5 and 15 minutes."""
    return [round(average, 2) for average in os.getloadavg()]


def processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
