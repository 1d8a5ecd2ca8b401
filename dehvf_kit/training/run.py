"""Recipe -> trained adapter in a folder: build, encode, train, save; or go on with an interrupted run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import set_seed

from dehvf_kit.adapter.checkpoint import adapter_recipe, restore
from dehvf_kit.adapter.files import adapter_folder, read_config, read_weights
from dehvf_kit.adapter.identity import base_identities, check_bases, differences, fingerprint, saved_fingerprint
from dehvf_kit.data.sample_filter import SKIPPED, Skipped, write_skipped
from dehvf_kit.data.samples import Sample
from dehvf_kit.data.stream import SampleStream
from dehvf_kit.errors import AdapterError, DataError, Stopped, TrainingError, shown
from dehvf_kit.model.builder import build
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.files import flat
from dehvf_kit.recipe.recipe import Recipe, as_recipe, unscaled
from dehvf_kit.recipe.sections import TrainingConfig, precision_here
from dehvf_kit.training.callbacks import OVERFLOWED, Stopping, best_of, seconds_spent, skipped_steps
from dehvf_kit.training.checkpoints import newest, step_of
from dehvf_kit.training.distributed import Processes, join_processes, prepare_model, reaches_all
from dehvf_kit.training.run_folder import (
    ADAPTER,
    CHECKPOINTS,
    RunFolder,
    compare_records,
    default_folder,
    record_of,
    training_errors,
    write_record,
)
from dehvf_kit.training.trainer import DehvfTrainer, trackers, training_arguments
from dehvf_kit.training.training_set import (
    Progress,
    StreamedSamples,
    TrainingSet,
    log_noted,
    read_samples,
    scored_splits,
    skipped_samples,
    training_set,
)
from dehvf_kit.training.validation import Questions, scored_split
from dehvf_kit.utils.frames import frame

__all__ = ["ADAPTER", "CHECKPOINTS", "Progress", "TrainResult", "silent", "train"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a run did: its adapter's folder, optimiser steps, samples seen, seconds spent in steps, and its log.

    skipped: the steps whose loss or gradient was not finite; overflowed: those that float16's loss scale made too large, after
    which it was halved; left_out: ids of the samples excluded because they have no
    token to learn; skipped_samples: bad ones, where `data.on_bad_sample` says to skip them; best: step and figure of the best
    score of the validation split; test_score: of the finished adapter, where the recipe asks for it.
    """

    adapter: Path
    steps: int
    samples: int
    seconds: float
    log: list[dict[str, Any]]
    skipped: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()
    skipped_samples: tuple[Skipped, ...] = ()
    best: tuple[int, float] | None = None
    test_score: float | None = None
    overflowed: tuple[int, ...] = ()

    def to_pandas(self) -> Any:
        """The log as a pandas DataFrame, a row for each logged step. Raises: DehvfError without pandas."""
        return frame([row for row in self.log if "loss" in row])


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """A progress function that shows nothing."""


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    output: str | Path | None = None,
    model: DehvfModel | None = None,
    features: FeatureStore | None = None,
    resume: bool = False,
    progress: Progress = silent,
    samples: Sequence[Sample] | None = None,
    *,
    overrides: Sequence[str] = (),
) -> TrainResult:
    """Train a recipe's adapter and save it to `output/adapter`, with checkpoints and logs beside it.

    Args:
        recipe: what to train, on which data, and how: a recipe, its plain data, or a file's path.
        output: the run's folder; `runs/NAME` by the recipe's name where left out.
        model: a model to train; built from the recipe if None.
        features: a store of image features to use in place of the recipe's.
        resume: go on from the newest whole checkpoint in `output`, or from the start where there is none yet; a finished
            run is left as it is. On a CPU a resumed run ends in the same bits as an uninterrupted one.
        progress: called with stage, done, total and a note.
        samples: train on these in place of the training split.
        overrides: `key=value` changes to the recipe.

    Returns:
        What the run did.

    Raises:
        DataError: where the recipe has no data, or no sample has an answer to learn.
        DehvfError: where `output` holds a run already and `resume` is off.
        TrainingError: where recipe or data changed since the run began, the folder is in use or cannot be written, a data
            worker died, or too many steps were not finite.
        Stopped: after Ctrl-C, SIGTERM or SIGHUP, once a checkpoint is saved.
    """
    recipe = as_recipe(recipe, overrides)
    output = default_folder(recipe.name) if output is None else Path(output)
    if recipe.data is None:
        raise DataError(f"{recipe.source}: has no `data` section, so there is nothing to train on")
    trackers(recipe.training.report_to)
    splits = scored_splits(recipe)
    settled = {"precision": precision_here(recipe.training.precision)}  # as the run's record and its adapter say
    recipe = replace(recipe, training=recipe.training.model_copy(update=settled))
    processes = join_processes(recipe.training.precision)
    progress = progress if processes.main else silent
    with RunFolder(output, resume, processes.main) as folder:
        if folder.finished:
            log.warning("%s: this run is finished; there is nothing to go on with", output)
            rows = folder.read_log()
            steps = max((row["step"] for row in rows if "step" in row), default=0)
            return _result(folder, recipe, processes, steps, rows)
        last = newest(folder.checkpoints, folder.writes) if resume else None
        processes.wait()  # or another process looks at what the first puts aside
        given = read_samples(recipe, samples, None if model is None else model.reads_images)
        with training_errors(folder):
            _begin(folder, recipe, [] if isinstance(given, SampleStream) else given.samples, last, processes.count)
        if model is None:
            progress("loading the base models", 0, 1, "")
            model = build(recipe)
            model.bases = base_identities(model, loaded=True)
        if (warning := unscaled(recipe, str(model.decoder.dtype))) and processes.main:
            log.warning("%s", warning)
        if last is None and recipe.training.init_from is not None:
            begin_from(model, recipe.training.init_from)
        data = training_set(recipe, model, given, features, progress, processes)
        questions = {
            prefix: scored_split(recipe, split, model, data, features, progress, processes) for prefix, split in splits.items()
        }
        if folder.writes:
            write_skipped(output / SKIPPED, data.skipped)
        with training_errors(folder):
            started = time.perf_counter()
            state = _take_steps(recipe, folder, model, data, questions, last, progress, processes)
            seconds = time.perf_counter() - started
            if folder.writes:
                folder.write_log(state.log_history)
                model.save_pretrained(folder.adapter)
        if processes.count == 1:  # split weights cannot be read again
            model.bases = None
        processes.wait()
        return _result(folder, recipe, processes, state.global_step, state.log_history, seconds, data)


def begin_from(model: DehvfModel, place: str) -> None:
    """Put an adapter's weights into a model that is about to be trained.

    Raises: AdapterError where the adapter has another graph, or belongs to other base models, or its weights do not fit.
    """
    folder = adapter_folder(place)
    saved = read_config(folder)
    before, now = (dict(flat(one.resolved()["graph"])) for one in (adapter_recipe(saved, folder), model.recipe))
    names = (name for name in dict.fromkeys([*before, *now]) if name.rpartition(".")[2] != "dropout")
    if name := next((name for name in names if before.get(name) != now.get(name)), None):
        raise AdapterError(
            f"training.init_from: {folder}: its recipe has graph.{name}={shown(before.get(name))}, this one "
            f"{shown(now.get(name))}; begin with an adapter of the same graph, or leave init_from out"
        )
    check_bases(model, saved, folder)
    restore(model, read_weights(folder), f"training.init_from: {folder}")


def _begin(folder: RunFolder, recipe: Recipe, samples: Sequence[Sample], last: Path | None, processes: int) -> None:
    """Write the run's record, or compare it with the one that is there. Of a stream only the files are compared."""
    record = record_of(recipe, samples, processes)
    if last is not None:
        for line in compare_records(folder.place, record):
            log.warning("%s: %s; the run goes on, but not to the last bit as it would have", folder.place, line)
        return
    if folder.resume:
        log.warning("%s: no checkpoint yet; the run begins from the start", folder.place)
    if folder.writes:
        write_record(folder.place, record)


def _refuse_other_prompt(saved: Mapping[str, Any], recipe: Recipe, model: DehvfModel, last: Path) -> None:
    """Raises: TrainingError where the tokenizer makes other tokens of a prompt than when the run began."""
    now = fingerprint(recipe, model.processor.tokenizer)
    for name, before, found in differences(saved_fingerprint(saved, recipe, str(last)), now):
        raise TrainingError(
            f"{last}: the run began under another prompt: {name} was {shown(before)}, and is {shown(found)} now; restore the "
            "decoder's tokenizer files, or begin a new run"
        )


def _take_steps(
    recipe: Recipe,
    folder: RunFolder,
    model: DehvfModel,
    data: TrainingSet,
    questions: Mapping[str, Questions],
    last: Path | None,
    progress: Progress,
    processes: Processes,
) -> TrainerState:
    """Take the steps that are left, all of them where there is no checkpoint; the Trainer's state. Raises: Stopped."""
    config = recipe.training
    if last is not None:
        saved = read_config(last)
        check_bases(model, saved, last)
        _refuse_other_prompt(saved, recipe, model, last)
    set_seed(config.seed)
    args = training_arguments(config, folder.checkpoints, data.count, processes.count)
    args.ddp_find_unused_parameters = not reaches_all(model, getattr(data.dataset, "samples", ()))
    model.bases = model.bases or base_identities(model)  # once, not for every checkpoint: the bases are frozen
    prepare_model(model, processes)
    model.train()
    patient = [EarlyStoppingCallback(config.patience)] if config.patience else []
    with Stopping() as stopping:
        callbacks, times = [stopping, *patient], (config.max_bad_steps, config.max_minutes)
        trainer = DehvfTrainer(
            *(model, args, data.dataset, callbacks, config.node_rates, *times),
            report=lambda step, steps, loss: progress("training", step, steps, f"loss {loss:.3f}"),
            questions=questions,
            keep_best=config.keep_best,
        )
        if last is not None and _has_ended(last, args.max_steps, config):
            # Ended after its last step: transformers would take one more where an epoch is not over.
            restore(model, read_weights(last), str(last))
            trainer.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
        else:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    model.eval()
    if folder.writes and isinstance(data.dataset, StreamedSamples):
        write_skipped(folder.place / SKIPPED, skipped_samples(trainer.state.log_history))
        log_noted(trainer.state.log_history)
    step = trainer.state.global_step
    if stopping.number is not None and step < args.max_steps:
        place = newest(folder.checkpoints, put_aside=False)
        raise Stopped(
            f"stopped by {stopping.name} after step {step} of {args.max_steps}; saved in {place}; "
            "go on with the same command and --resume",
            stopping.number,
        )
    if config.keep_best and "eval" in questions:
        trainer.take_best()
    if "test" in questions:
        trainer.remove_callback(EarlyStoppingCallback)
        trainer.evaluate(questions["test"].encoded, metric_key_prefix="test")
    return trainer.state


def _has_ended(checkpoint: Path, steps: int, config: TrainingConfig) -> bool:
    """Whether a run that was ended after this checkpoint has no step left, no minutes, or no patience."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    waited = (state.stateful_callbacks or {}).get(EarlyStoppingCallback.__name__, {}).get("attributes", {})
    if step_of(checkpoint) >= steps or 0 < config.max_minutes * 60 <= seconds_spent(state.log_history):
        return True
    return 0 < config.patience <= waited.get("early_stopping_patience_counter", 0)


def _result(
    folder: RunFolder,
    recipe: Recipe,
    processes: Processes,
    steps: int,
    rows: list[dict[str, Any]],
    seconds: float = 0.0,
    data: TrainingSet | None = None,
) -> TrainResult:
    return TrainResult(
        adapter=folder.adapter,
        steps=steps,
        samples=steps * recipe.training.samples_per_step(processes.count),
        seconds=seconds,
        log=rows,
        skipped=tuple(skipped_steps(rows)),
        overflowed=tuple(skipped_steps(rows, OVERFLOWED)),
        left_out=tuple(data.left_out) if data is not None else (),
        best=best_of(rows, recipe.training.metric_for_best),
        test_score=next((row["test_score"] for row in rows if "test_score" in row), None),
        skipped_samples=(*(data.skipped if data is not None else ()), *skipped_samples(rows)),
    )
