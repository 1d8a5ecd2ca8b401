"""Recipe -> trained adapter in a folder: build, encode, train, save; and go on with what a run left."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import set_seed

from dehvf_kit.adapter.checkpoint import check_bases, read_config, read_weights, restore
from dehvf_kit.data.sample_filter import SKIPPED, Skipped, write_skipped
from dehvf_kit.data.samples import Sample
from dehvf_kit.data.stream import SampleStream
from dehvf_kit.errors import DataError, Stopped
from dehvf_kit.model.builder import build
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit.training.checkpoints import newest, step_of
from dehvf_kit.training.distributed import Processes, join_processes, spread
from dehvf_kit.training.failures import told
from dehvf_kit.training.finite_steps import skipped_steps
from dehvf_kit.training.run_folder import ADAPTER, CHECKPOINTS, RunFolder
from dehvf_kit.training.run_record import compare, record_of, write_record
from dehvf_kit.training.stopping import Stopping
from dehvf_kit.training.trackers import trackers
from dehvf_kit.training.trainer import DehvfTrainer, StepReport, training_arguments
from dehvf_kit.training.training_set import Progress, TrainingSet, read_samples, training_set

__all__ = ["ADAPTER", "CHECKPOINTS", "Progress", "TrainResult", "bfloat16_is_fast", "silent", "train"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run did: its adapter's folder, optimiser steps, samples seen, seconds spent in steps, and its log.

    skipped: the steps whose loss or gradient was not finite; left_out: ids of samples without a token to learn from;
    skipped_samples: bad ones, where `data.on_bad_sample` says to skip them.
    """

    adapter: Path
    steps: int
    samples: int
    seconds: float
    log: list[dict[str, Any]]
    skipped: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()
    skipped_samples: tuple[Skipped, ...] = ()


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """A progress function that shows nothing."""


def train(
    recipe: Recipe,
    output: Path,
    model: DehvfModel | None = None,
    features: FeatureStore | None = None,
    resume: bool = False,
    progress: Progress = silent,
    samples: Sequence[Sample] | None = None,
) -> TrainResult:
    """Train a recipe's adapter and save it to `output/adapter`, with checkpoints and logs beside it.

    model, features: ready-made ones to use. resume: go on from the newest whole checkpoint in `output`; from the beginning
    where the run was ended before its first; with nothing to do where it is finished. On a CPU a resumed run ends in the
    same bits as one that was never ended. samples: train on these in place of the training split.
    Raises: DataError where the recipe has no data or no sample has an answer to learn; DehvfError where `output` holds
    a run already and `resume` is off; TrainingError where recipe or data changed since the run began, the folder is another
    run's or cannot be written, a data worker died, or too many steps were not finite; Stopped after Ctrl-C or SIGTERM, a
    checkpoint being saved.
    """
    if recipe.data is None:
        raise DataError(f"{recipe.source}: has no `data` section, so there is nothing to train on")
    trackers(recipe.training.report_to)
    here = join_processes()
    progress = progress if here.main else silent
    with RunFolder(output, resume, here.main) as folder:
        if folder.finished:
            log.warning("%s: this run is finished; there is nothing to go on with", output)
            return _result(folder, recipe, folder.read_log(), 0.0, here)
        last = newest(folder.checkpoints, folder.writes) if resume else None
        here.wait()  # or another process looks at what the first puts aside
        given = read_samples(recipe, samples)
        with told(folder):
            _begin(folder, recipe, [] if isinstance(given, SampleStream) else given.samples, last, resume)
        if model is None:
            progress("loading the base models", 0, 1, "")
            model = build(recipe)
        found = training_set(recipe, model, given, features, progress, here)
        if folder.writes:
            write_skipped(output / SKIPPED, found.skipped)
        with told(folder):
            trainer, seconds = _steps(recipe, folder, model, found, last, progress, here)
            rows = trainer.state.log_history
            if folder.writes:
                folder.write_log(rows)
                model.save_pretrained(folder.adapter)
        here.wait()
        return _result(folder, recipe, rows, seconds, here, trainer.state.global_step, found)


def _begin(folder: RunFolder, recipe: Recipe, samples: Sequence[Sample], last: Path | None, resume: bool) -> None:
    """Write down what the run is begun with, or see that it is still the same. Of a stream the files alone are compared."""
    record = record_of(recipe, samples)
    if last is not None:
        for line in compare(folder.place, record):
            log.warning("%s: %s; the run goes on, but not to the last bit as it would have", folder.place, line)
        return
    if resume:
        log.warning("%s: no checkpoint yet; the run begins from the start", folder.place)
    if folder.writes:
        write_record(folder.place, record)


def _steps(
    recipe: Recipe,
    folder: RunFolder,
    model: DehvfModel,
    found: TrainingSet,
    last: Path | None,
    progress: Progress,
    here: Processes,
) -> tuple[DehvfTrainer, float]:
    """Take the steps that are left; the trainer and the seconds that took. Raises: Stopped."""
    config = recipe.training
    if last is not None:
        check_bases(model, read_config(last), last)
    set_seed(config.seed)
    args = training_arguments(config, folder.checkpoints, found.count, here.count)
    report = StepReport(
        lambda step, steps, loss: progress("training", step, steps, "" if loss is None else f"loss {loss:.3f}")
    )
    spread(model, here)
    started = time.perf_counter()
    model.train()
    with Stopping() as stopping:
        trainer = DehvfTrainer(model, args, found.dataset, [report, stopping], config.node_rates, config.max_bad_steps)
        _drop_printer(trainer)
        if last is not None and step_of(last) >= args.max_steps:
            # Ended after its last step: transformers would take one more where an epoch is not over.
            restore(model, read_weights(last), str(last))
            trainer.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
        else:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    model.eval()
    step = trainer.state.global_step
    if stopping.number is not None and step < args.max_steps:
        place = newest(folder.checkpoints, put_aside=False)
        raise Stopped(
            f"stopped by {stopping.name} after step {step} of {args.max_steps}; saved in {place}; "
            "go on with the same command and --resume",
            stopping.number,
        )
    return trainer, time.perf_counter() - started


def _result(
    folder: RunFolder,
    recipe: Recipe,
    rows: list[dict[str, Any]],
    seconds: float,
    here: Processes,
    steps: int | None = None,
    found: TrainingSet | None = None,
) -> TrainResult:
    """steps: None where the log alone tells."""
    if steps is None:
        steps = max((row["step"] for row in rows if "step" in row), default=0)
    config = recipe.training
    seen = steps * config.batch_size * config.gradient_accumulation * here.count
    left_out, bad = ((), ()) if found is None else (tuple(found.left_out), tuple(found.skipped))
    return TrainResult(folder.adapter, steps, seen, seconds, rows, tuple(skipped_steps(rows)), left_out, bad)


def _drop_printer(trainer: DehvfTrainer) -> None:
    """The Trainer's own printing callback: the kit shows progress itself."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def bfloat16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
