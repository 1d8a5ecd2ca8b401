"""Ctrl-C and SIGTERM: finish the step, save, stop. A second signal acts at once, as it would without this."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping(TrainerCallback):
    """Inside `with`, the first SIGINT or SIGTERM makes the Trainer save a checkpoint after the current step and stop.

    `number` is the signal's, None where there was none. In other threads than the main one nothing is caught. Worker
    processes forked inside inherit the handler, so a signal sent to the whole group does not end them under the step.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._caught) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._give_back()

    def _give_back(self) -> None:
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
