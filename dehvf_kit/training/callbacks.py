"""Trainer callbacks: progress at every step, the order of each epoch, and a clean stop on Ctrl-C, SIGTERM or SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


class StepReport(TrainerCallback):
    """Calls `report(step, steps, loss)` at every step, with the latest logged loss."""

    def __init__(self, report: Callable[[int, int, float | None], None]) -> None:
        self.report, self.loss = report, None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.report(state.global_step, state.max_steps, self.loss)


class EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins, also where accelerate's way of skipping batches does not reach it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        if hasattr(train_dataloader, "set_epoch"):
            train_dataloader.set_epoch(int(state.epoch or 0))


class Stopping(TrainerCallback):
    """Inside `with`, the first SIGINT, SIGTERM or SIGHUP makes the Trainer save a checkpoint after the current step and stop.

    A second signal acts as it would without this. `number` is the signal's, None where there was none. Only the main
    thread catches signals. Worker processes forked inside inherit the handler, so a signal to the whole process group
    does not end them during a step.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            # `nohup` has SIGHUP ignored, and so it stays.
            numbers = [one for one in SIGNALS if one == signal.SIGINT or signal.getsignal(one) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._caught) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_handlers()

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def name(self) -> str:
        """The signal as people know it."""
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number or 0).name

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.number is not None:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.number is not None:
            control.should_training_stop = True
