"""Recipe -> trained adapter in a folder: build, encode, train, save."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint, set_seed

from dehvf_kit.builder import build
from dehvf_kit.data.encoding import EncodedSamples
from dehvf_kit.data.feature_files import cached_features
from dehvf_kit.data.features import FeatureStore
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DataError, DehvfError
from dehvf_kit.model import DehvfModel
from dehvf_kit.recipe import Recipe
from dehvf_kit.training.trackers import trackers
from dehvf_kit.training.trainer import DehvfTrainer, StepReport, training_arguments

Progress = Callable[[str, int, int, str], None]
ADAPTER, CHECKPOINTS = "adapter", "checkpoints"


@dataclass(frozen=True)
class TrainResult:
    """What a run did: its adapter's folder, optimiser steps, samples seen, seconds spent in steps, and its log."""

    adapter: Path
    steps: int
    samples: int
    seconds: float
    log: list[dict[str, Any]]


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

    model, features: ready-made ones to use. resume: go on from the newest checkpoint in `output`. samples: train on
    these in place of the training split.
    Raises: DataError where the recipe has no data or no sample has an answer to learn, DehvfError where `output` holds
    a run already and `resume` is off.
    """
    if recipe.data is None:
        raise DataError(f"{recipe.source}: has no `data` section, so there is nothing to train on")
    trackers(recipe.training.report_to)
    checkpoints = output / CHECKPOINTS
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if resume and last is None:
        raise DehvfError(f"{output}: holds no checkpoint to resume from; leave out --resume")
    if not resume and (last is not None or (output / ADAPTER).exists()):
        raise DehvfError(f"{output}: holds a run already; name another folder, or go on with it by --resume")
    samples = recipe.data.samples("train") if samples is None else samples
    if not samples:
        raise DataError(f"{recipe.source}: its training set is empty")
    if model is None:
        progress("loading the base models", 0, 1, "")
        model = build(recipe)
    if model.processor is None:
        raise DehvfError("training needs a tokenizer; hand one over to build(..., tokenizer=...)")
    config = recipe.training
    reads = model.reads_pictures
    if reads and config.cache_features:
        features = cached_features(model, config) if features is None else features
        features.fill(samples, progress=lambda done, total: progress("reading pictures", done, total, ""))
    encoded = EncodedSamples(
        samples,
        model.processor,
        recipe.data.prompt,
        config.max_length,
        reads,
        features if config.cache_features else None,
    )
    set_seed(config.seed)
    args = training_arguments(config, checkpoints, len(samples))
    report = StepReport(
        lambda step, steps, loss: progress("training", step, steps, "" if loss is None else f"loss {loss:.3f}")
    )
    trainer = DehvfTrainer(model, args, encoded, [report])
    _drop_printer(trainer)
    started = time.perf_counter()
    model.train()
    trainer.train(resume_from_checkpoint=last if resume else None)
    seconds = time.perf_counter() - started
    model.eval()
    model.save_pretrained(output / ADAPTER)
    log = trainer.state.log_history
    (output / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
    steps = trainer.state.global_step
    return TrainResult(output / ADAPTER, steps, steps * config.batch_size * config.gradient_accumulation, seconds, log)


def _drop_printer(trainer: DehvfTrainer) -> None:
    """The Trainer's own printing callback: the kit shows progress itself."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def bfloat16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
