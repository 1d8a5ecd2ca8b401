"""Trainer callbacks: progress, the order of each epoch, a clean stop on Ctrl-C, SIGTERM or SIGHUP, finite steps, the best score.

A step whose loss or gradient is not finite is named, skipped and counted; too many in a row end the run. A skipped step
changes neither weights nor optimiser: its gradients are removed before the optimiser reads them. It still counts in the
schedule, so that a run's length and learning rates stay the same. Where gradients overflow under float16's loss scale, the scaler
skips the step and halves the scale: such steps are counted apart.
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from dehvf_kit.backbones.attached import run_eagerly
from dehvf_kit.errors import TrainingError, listing

SCORE = "score"

SIGNALS = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))
SKIPPED, OVERFLOWED = "skipped_step", "overflowed_step"
SPENT = "training_seconds"
NAMED = 8
log = logging.getLogger(__name__)
Batch = dict[str, Any]
Report = Callable[[int, int, float], None]


class EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins, also where accelerate's way of skipping batches does not reach it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        if hasattr(train_dataloader, "set_epoch"):
            train_dataloader.set_epoch(int(state.epoch or 0))


class TimeBudget(TrainerCallback):
    """Ends a run after its minutes of training, with the learning rate at zero as after its last step.

    Warm-up and decay follow the run's progress: the share of its steps or of its time, whichever is larger. The time of an
    interrupted run is in its log, with each checkpoint too, so that a resumed one spends what is left.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds, self.before = minutes * 60, 0.0
        self._began: float | None = None

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return self.before + (0.0 if self._began is None else time.monotonic() - self._began)

    def rate(self, step: int, warmup: int, steps: int) -> float:
        """The learning rate at a step as a share of the peak: linear warm-up, then a half cosine to zero."""
        progress, warm = min(1.0, max(step / steps, self.spent / self.seconds)), warmup / steps
        return progress / warm if progress < warm else (1 + math.cos(math.pi * (progress - warm) / (1 - warm))) / 2

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before = seconds_spent(state.log_history)
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.spent >= self.seconds:  # as transformers ends after the last step
            control.should_log = control.should_training_stop = control.should_save = True
            control.should_evaluate = args.eval_strategy == IntervalStrategy.STEPS
        if control.should_save:
            state.log_history.append({SPENT: round(self.spent, 1)})


def seconds_spent(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training of a run with bounded minutes, by its log."""
    return max((row.get(SPENT, 0.0) for row in rows), default=0.0)


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

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
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


class FiniteSteps(TrainerCallback):
    """Checks every step before the optimiser takes it.

    Args:
        limit: skipped steps in a row that end the run.
        run: runs the model on a batch as training does, to find the first module whose output is not finite.
        any_process: whether a flag is set on any of the processes that train together.
        report: called after every step with the step, all steps, and the step's own loss.
    """

    def __init__(
        self, limit: int, run: Callable[[Batch], Any], any_process: Callable[[bool], bool] = bool, report: Report = lambda *_: None
    ) -> None:
        self.limit, self.run, self.any_process, self.report = limit, run, any_process, report
        self.loss = float("nan")
        self._batches: list[tuple[Batch, Sequence[str], Tensor]] = []
        self.good_since_log = 0

    def saw(self, batch: Batch, ids: Sequence[str], loss: Tensor) -> None:
        """A batch of the current step, its samples' ids, and its loss."""
        self._batches.append((batch, ids, loss))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Any, **_: Any) -> None:
        """Raises: TrainingError after `limit` skipped steps in a row."""
        batches, self._batches = self._batches, []
        losses = [bool(loss.isfinite().all()) for _, _, loss in batches]
        self.loss = sum(float(loss) for _, _, loss in batches)
        infinite = [name for name, parameter in model.named_parameters() if not all_finite(parameter.grad)]
        skipped = bool(getattr(getattr(optimizer, "optimizer", None), "overflow", False))  # by DeepSpeed, which keeps the gradients
        if not self.any_process(bool(infinite) or skipped or not all(losses)):
            self.good_since_log += 1
            return
        step, scaler = state.global_step + 1, getattr(optimizer, "scaler", None)
        if scaler is not None and scaler.get_scale() > 1 and not self.any_process(not all(losses)):
            self.good_since_log += 1  # the loss is right, and the scaler will skip the step and halve its scale
            state.log_history.append({OVERFLOWED: step, "loss_scale": scaler.get_scale()})
            return
        where = self._where(model, batches, losses, infinite)
        optimizer.zero_grad(set_to_none=True)
        state.log_history.append({SKIPPED: step, **where})
        in_a_row = skipped_in_a_row(state.log_history, step)
        message = f"step {step} skipped: {where['reason']}; samples {where['samples']}; first not finite: {where['first']}"
        if in_a_row >= min(self.limit, state.max_steps):
            raise TrainingError(
                f"{message}\n{in_a_row} steps in a row (training.max_bad_steps: {self.limit}): the run stops; its last checkpoint "
                "is from before. A lower training.base_learning_rate, training.max_grad_norm=1 or precision float32 may help."
            )
        log.warning("%s (%d in a row, the run stops at %d)", message, in_a_row, self.limit)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **_: Any) -> None:
        if getattr(optimizer, "scaler", None) is not None and optimizer.step_was_skipped:  # then the Trainer leaves the schedule
            lr_scheduler.step()
        self.report(state.global_step, state.max_steps, self.loss)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any) -> None:
        updated = getattr(optimizer, "state", None) or {}
        trained = {name: one in updated for name, one in model.named_parameters() if one.requires_grad}
        names = [name.removeprefix("nodes.") for name, reached in trained.items() if not reached]
        if 0 < len(names) < len(trained):  # an optimiser that shards or flattens knows none of them
            log.warning("no gradient reached %s, so they are as they began", listing(names))

    def _where(
        self, model: nn.Module, batches: Sequence[tuple[Batch, Sequence[str], Tensor]], losses: list[bool], infinite: list[str]
    ) -> dict[str, str]:
        """Reason, samples and place: of the batches with a bad loss, else of the whole step."""
        bad = [one for one, fine in zip(batches, losses, strict=True) if not fine] or list(batches)
        ids = [sample for _, batch_ids, _ in bad for sample in batch_ids]
        samples = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
        if not all(losses):
            reason = f"the loss is {next(float(loss) for _, _, loss in bad)}"
        elif infinite:
            reason = f"{len(infinite)} gradients are not finite"
        else:
            reason = "a loss or gradient of several processes is not finite"
        first = next((found for batch, _, _ in bad if (found := first_non_finite(model, batch, self.run))), None)
        first = first or (f"the gradient of '{infinite[0].removeprefix('nodes.')}'" if infinite else "unknown")
        return {"reason": reason, "samples": samples or "unknown", "first": first}

    def clean(self, logs: dict[str, Any]) -> dict[str, Any]:
        """A log line without a mean loss where no step was finite, and without values that are not finite."""
        if "loss" in logs:
            if not self.good_since_log:
                logs = {key: value for key, value in logs.items() if key not in ("loss", "grad_norm")}
            self.good_since_log = 0
        return {key: value for key, value in logs.items() if not isinstance(value, float) or torch.isfinite(torch.tensor(value))}


def skipped_steps(rows: Sequence[dict[str, Any]], why: str = SKIPPED) -> list[int]:
    """The steps that a run's log says were skipped."""
    return [row[why] for row in rows if why in row]


def skipped_in_a_row(rows: Sequence[dict[str, Any]], step: int) -> int:
    """How many steps up to and with `step` were skipped."""
    skipped = set(skipped_steps(rows))
    return next(count for count in itertools.count() if step - count not in skipped)


def first_non_finite(model: nn.Module, batch: Mapping[str, Any], run: Callable[[dict[str, Any]], Any]) -> str | None:
    """What is not finite first: a tensor of the batch, a trained weight, or the first module to return such an output.

    run: runs the model on the batch. Random states stay as they are. None where everything is finite.
    """
    for key, value in batch.items():
        if not all_finite(value):
            return f"the batch's own {key}"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not all_finite(parameter.detach()):
            return f"the weights '{name.removeprefix('nodes.')}'"
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all_finite(output):
                found.append(f"the output of '{name.removeprefix('nodes.')}'" if name else "the model's output")

        return hook

    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        with torch.random.fork_rng(devices), torch.no_grad(), run_eagerly():
            run(dict(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def all_finite(value: Any) -> bool:
    """Whether every floating number in a tensor, or in nested tuples, lists, mappings and objects of tensors, is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value) if tensor.is_floating_point())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "__dataclass_fields__"):
        yield from _tensors([getattr(value, name, None) for name in value.__dataclass_fields__])


def best_of(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[int, float] | None:
    """Step and figure of the best score in a run's log, the first among equals; None where it was not scored."""
    better: Callable[..., Any] = max if metric == SCORE else min
    found = [(row["step"], row[f"eval_{metric}"]) for row in rows if f"eval_{metric}" in row]
    return better(found, key=lambda one: one[1]) if found else None
