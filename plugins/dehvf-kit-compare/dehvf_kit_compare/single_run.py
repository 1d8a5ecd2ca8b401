"""One run: train a job's recipe, score it, measure it, and leave a folder that is whole or not there."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dehvf_kit._version import __version__
from dehvf_kit.cli.console import Reporter, quiet_transformers
from dehvf_kit.costs.flops import batch_flops
from dehvf_kit.data.encoding import EncodedSamples
from dehvf_kit.data.metrics.scores import Score, Scores
from dehvf_kit.data.sample_filter import SampleFilter, with_skipped
from dehvf_kit.data.samples import Sample
from dehvf_kit.errors import DehvfError
from dehvf_kit.evaluation.answers import answer
from dehvf_kit.model.builder import build
from dehvf_kit.model.feature_files import FeatureFiles
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.plugin_manager import load_plugin_file
from dehvf_kit.recipe.recipe import parse_recipe
from dehvf_kit.recipe.sections import TrainingConfig
from dehvf_kit.training.run import CHECKPOINTS, Progress, silent, train
from dehvf_kit.utils.atomic import write_output
from dehvf_kit_compare.job import PREDICTIONS, RESULT, WORKING, read_job, write_json
from dehvf_kit_compare.measure import PeakMemory, StepClock
from dehvf_kit_compare.rules import hold_out

SCORING_BATCH = 32


def run_job(file: Path, progress: Progress = silent) -> Path:
    """Run the job in `NAME.working/job.json`; the folder becomes `NAME`, with result, answers and adapter in it.

    Raises: DehvfError for a job, recipe or data set that is faulty.
    """
    folder = file.parent
    if not folder.name.endswith(WORKING):
        raise DehvfError(f"{file}: a job runs in a folder whose name ends in {WORKING}")
    job = read_job(file)
    torch.set_num_threads(job.threads)
    for plugin in job.plugins:
        load_plugin_file(plugin)
    recipe = parse_recipe(job.recipe, job.name)
    config = recipe.training
    learned = SampleFilter(recipe.data, "train").samples
    if job.hold_out is not None:
        learned, asked = hold_out(learned, job.hold_out)
    else:
        asked = SampleFilter(recipe.data, "test").samples
    progress("loading the base models", 0, 1, "")
    model = build(recipe)
    to_learn, to_ask, wanted = (SampleFilter(recipe.data, "train", learned), SampleFilter(recipe.data, "test", asked), asked)
    if model.reads_images:
        learned, asked = to_learn.readable(), to_ask.readable()
    features = _features(model, config, [*learned, *asked], progress)
    clock = StepClock(progress)
    with PeakMemory() as memory:
        trained = train(recipe, folder, model, features, samples=learned, progress=clock)
    began = time.perf_counter()
    settings = {"batch_size": SCORING_BATCH, "features": features}
    predictions = recipe.data.ask(
        partial(answer, each=True), model, asked, **settings, progress=lambda done, total: progress("asking", done, total, "")
    )
    seconds = time.perf_counter() - began
    predictions = with_skipped(predictions, wanted, to_ask.skipped)
    encoded = EncodedSamples(
        learned[: config.batch_size],
        processor=model.processor,
        prompt=recipe.data.prompt,
        max_length=config.max_length,
        images=model.reads_images,
        features=features,
        skip=to_learn.skip if to_learn.skips else None,
    )
    flops = batch_flops(model, encoded, config.batch_size)
    write_output(folder / PREDICTIONS, "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in predictions))
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    write_json(
        folder / RESULT,
        {
            "recipe": job.name,
            "label": job.label,
            "seed": config.seed,
            "base_learning_rate": config.base_learning_rate,
            "scored_on": "validation" if job.hold_out else "test",
            "scores": _scores(recipe.data.score(predictions)),
            "skipped_questions": len(to_ask.skipped),
            "skipped_training_samples": len(to_learn.skipped) + len(trained.skipped_samples),
            "trained_parameters": model.num_trainable_parameters(),
            "steps": trained.steps,
            "batch": config.batch_size * config.gradient_accumulation,
            "training_questions": len(learned),
            "flops": asdict(flops),
            "train_seconds": round(trained.seconds, 2),
            "seconds_per_step": clock.seconds_per_step,
            "answer_seconds_per_question": seconds / len(asked),
            "memory": {"rest": memory.rest, "peak": memory.peak, "how": memory.how},
            **_circumstances(job.threads),
        },
    )
    finished = folder.with_name(folder.name.removesuffix(WORKING))
    os.replace(folder, finished)
    return finished


def _features(model: DehvfModel, config: TrainingConfig, samples: Sequence[Sample], progress: Progress) -> FeatureStore | None:
    """Frozen features of every image in bfloat16, where the recipe caches them and no adapter changes them; runs share them."""
    if not config.cache_features or not model.reads_images or model.image_is_trained:
        return None
    features = FeatureFiles(model, torch.bfloat16, config.cache_folder, int(config.cache_limit_gib * 2**30))
    features.fill(samples, progress=lambda done, total: progress("encoding images", done, total, ""))
    return features


def _scores(found: Scores) -> dict[str, Any]:
    """The data set's main figure as `all`, its others as `by_kind`."""

    def row(score: Score) -> dict[str, Any]:
        return {"accuracy": score.value, "questions": score.count, "low": score.low, "high": score.high}

    others = {score.name: row(score) for score in found.scores if score.name != found.main}
    return {"all": row(found.headline), "by_kind": others}


def _circumstances(threads: int) -> dict[str, Any]:
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {
        "machine": f"{device}, {threads} thread{'s' if threads > 1 else ''}",
        "threads": threads,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {
            "dehvf-kit": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def main(file: Path) -> int:
    """Run the job; a fault that the user can correct is printed without a traceback."""
    quiet_transformers()
    try:
        run_job(file, Reporter(None))
    except DehvfError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
