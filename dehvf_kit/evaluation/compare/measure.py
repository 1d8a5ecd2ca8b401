"""What one run costs: FLOPs counted by torch, memory that training takes, and seconds a step."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dehvf_kit.data.encoding import Collator, EncodedSamples
from dehvf_kit.data.images import open_image
from dehvf_kit.model.model import DehvfModel

STATM = Path("/proc/self/statm")
SAMPLING_INTERVAL_S = 0.01
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class CountedFlops:
    """FLOPs that `torch.utils.flop_counter` sees (matrix products, attention written out, a multiply-add is two).

    forward: a question without its encoder; encoder: a picture; train_step: forward and backward of one batch, with the
    encoder where it runs at every step.
    """

    forward: int
    encoder: int
    train_step: int


def count_flops(model: DehvfModel, samples: EncodedSamples, batch_size: int) -> CountedFlops:
    """Count on the first `batch_size` samples, the same for every method of a comparison."""
    items = [samples[place] for place in range(min(batch_size, len(samples)))]
    batch = _on_device(Collator(model.processor.tokenizer.pad_token_id)(items), next(model.decoder.parameters()).device)
    pictures = [sample for sample in samples.samples[: len(items)] if sample.image is not None]
    plain = {name: value for name, value in batch.items() if name not in ("pixel_values", "vision_features")}
    given: dict[str, Any] = {}
    encoder = 0
    with torch.no_grad():
        if pictures and model.reads_images:
            pixels = model.processor.image_processor([open_image(one) for one in pictures], return_tensors="pt")
            pixels = _on_device(pixels["pixel_values"], next(model.decoder.parameters()).device)
            model.vision_features(
                pixels
            )  # an encoder's first pass looks at its layers too, which is not what a picture costs
            with _counting() as counter:
                given["vision_features"] = model.vision_features(pixels)
            encoder = counter.get_total_flops()
        with _counting() as counter:
            model(**plain, **given)
    forward = counter.get_total_flops()
    model.train()
    with _counting() as counter:
        model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)
    model.eval()
    return CountedFlops(forward // len(items), encoder // max(1, len(pictures)), counter.get_total_flops())


@contextlib.contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """FLOPs inside the block; attention by plain products, which are all seen."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return {name: _on_device(inner, device) for name, inner in value.items()} if isinstance(value, Mapping) else value


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
        """The median, the first steps left out; None for too short a run."""
        gaps = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        gaps = gaps[WARM_UP_STEPS:] or gaps
        return statistics.median(gaps) if gaps else None


class PeakMemory:
    """Memory inside the block: `rest` held at its start and `peak`, both in bytes; `how` says where they were read.

    On a GPU the allocator's figures. On Linux the process's own resident memory, shared and mapped files left out,
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
