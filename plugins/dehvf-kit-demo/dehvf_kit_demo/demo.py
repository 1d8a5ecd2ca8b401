"""The embedded default, end to end: train on images, then without them, score both on unseen images beside linear probes."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dehvf_kit_report.finished_run import PREDICTIONS
from dehvf_kit_report.inside import look_inside
from dehvf_kit_report.write import write_report

from dehvf_kit import __version__
from dehvf_kit.adapter.checkpoint import restore
from dehvf_kit.adapter.files import read_weights
from dehvf_kit.data.samples import Sample, samples_of
from dehvf_kit.errors import DehvfError
from dehvf_kit.evaluation.answers import Prediction, accuracy, answer
from dehvf_kit.model.builder import build
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel
from dehvf_kit.recipe.recipe import Recipe, load_recipe
from dehvf_kit.training.run import Progress, TrainResult, train
from dehvf_kit.training.run_folder import RECORD
from dehvf_kit.utils.atomic import check_new_folder, exists, write_output
from dehvf_kit.utils.shipped import HOME
from dehvf_kit_demo.beside_probe import probe_section, probed_kinds
from dehvf_kit_demo.sources import faster_dtype, faster_threads

DRAWINGS = [
    *("vision.image.size=168", "graph.position.num_slots=144"),  # the images' own size: kinds of objects need it
    *("data.train_scenes=2000", "data.test_scenes=200", "data.questions_per_scene=3"),
    *("data.questions=[kind,colour,texture,side,count,presence]", "data.alone=[40,112]"),
    *("training.epochs=1.4", "training.base_learning_rate=0.16"),
]
EASY_VQA = [
    *("data.train_questions=5120", "data.balanced=true"),
    *("graph.injector.output_scale=0.033", "training.base_learning_rate=0.16", "training.group_by_length=true"),
]
DATA = {
    "drawings": ("smollm2_dinov2_drawings.yaml", "smollm2_drawings_blind.yaml", DRAWINGS),
    "easy_vqa": ("smollm2_dinov2_easyvqa.yaml", "smollm2_easyvqa_blind.yaml", EASY_VQA),
}
"""The recipe of each data set, the one without images, and what the demo changes in both: as many questions as take minutes."""
RECIPES = HOME / "recipes"
BLIND_RUN = "without_images"
BLIND_STEPS = 150
"""After them the run without images is within a point of its score after 500 (docs/results.md): there is little to learn."""
WORTH = 100
"""Test questions that are asked again with the fuser's weights replaced."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: accuracies of both models and where everything is."""

    summary: dict[str, Any]
    page: Path
    adapter: Path


def run_demo(output: Path, minutes: float, say: Callable[[str], None], progress: Progress, data: str = "drawings") -> DemoResult:
    """Run the demo into `output`, or go on with one that was interrupted there. data: a name of `DATA`.

    `minutes` bounds the training of DEHVF while it runs: a slow or busy machine takes fewer steps, and says so. The run without
    images takes `BLIND_STEPS` steps, or as many as DEHVF where that is fewer.

    Raises: DehvfError where `output` holds a finished demo or the recipes are not beside the package.
    """
    cores = torch.get_num_threads()
    try:
        return _run(output, minutes, say, progress, DATA[data], cores)
    finally:
        torch.set_num_threads(cores)


def _run(
    output: Path, minutes: float, say: Callable[[str], None], progress: Progress, data: tuple[str, str, list[str]], cores: int
) -> DemoResult:
    if exists(output / "summary.json"):
        raise DehvfError(f"{output}: holds a demo already; look at {output / 'index.html'}, or name another --output")
    resume = exists(output / RECORD)
    if not resume:
        check_new_folder(output)
    started = time.perf_counter()
    _settle_threads(cores, say)
    seeing, unseeing, changes = data
    dtype = (_begun_in(output) if resume else None) or faster_dtype()
    overrides = [*changes, f"decoder.dtype={dtype}", f"vision.dtype={dtype}"]
    recipe = demo_recipe(seeing, [*overrides, f"training.max_minutes={minutes}"])
    say(f"building {recipe.description}")
    model = build(recipe)
    train_samples, test_samples = list(samples_of(recipe.data, "train")), list(samples_of(recipe.data, "test"))
    say(
        f"{model.num_trainable_parameters():,} trained parameters; {len(train_samples):,} training questions, "
        f"{len(test_samples):,} test questions"
    )
    features = FeatureStore(model, torch.bfloat16)
    features.fill(train_samples + test_samples, progress=lambda done, total: progress("reading images", done, total, ""))
    steps = recipe.training.num_steps(len(train_samples))
    _settle_threads(cores, say)
    began = "going on with" if resume else "training"
    say(f"{began} DEHVF: {steps} steps of {recipe.training.batch_size}, {minutes:g} minutes at most")
    result = train(recipe, output, model, features, resume, progress)
    if not result.seconds:  # finished before the interruption
        restore(model, read_weights(result.adapter), str(result.adapter))
    if result.steps < steps:
        say(f"{minutes:g} minutes were over after {result.steps} of {steps} steps; the learning rate had decayed by then")
    predictions = _ask(model, test_samples, features, progress)
    inside = look_inside(model, test_samples, len(test_samples), features=features, progress=_unnoted(progress), worth=WORTH)
    say("probing every layer of the encoder for each kind of question")
    probed = probed_kinds(recipe, features)

    decoder, vision, processor = model.decoder, model.towers["vision"].model, model.processor
    model.detach()
    blind_steps = min(result.steps, BLIND_STEPS)
    blind_recipe = demo_recipe(unseeing, [*overrides, f"training.max_steps={blind_steps}"])
    _settle_threads(cores, say)
    say(f"training the same recipe without images: {blind_steps} steps")
    blind = build(blind_recipe, decoder, vision, processor.tokenizer, processor.image_processor)
    told = _renamed(progress, "training without images")
    blind_result = train(blind_recipe, output / BLIND_RUN, blind, resume=exists(output / BLIND_RUN / RECORD), progress=told)
    if not blind_result.seconds:
        restore(blind, read_weights(blind_result.adapter), str(blind_result.adapter))
    blind_predictions = _ask(blind, test_samples, None, progress)

    seconds = time.perf_counter() - started
    summary = _summary(recipe, model, result, blind_result, predictions, blind_predictions, seconds)
    summary |= {"probe": probed, "ask": test_samples[0].question}
    _write(output, summary, predictions, blind_predictions)
    page = output / "index.html"
    title = "dehvf-kit demo: a frozen language model that sees"
    write_report(output, page, inside=inside, title=title, more=[probe_section(summary)] if probed else [])
    return DemoResult(summary, page, result.adapter)


def _settle_threads(most: int, say: Callable[[str], None]) -> None:
    """Compute with as many threads as are faster now, `most` or fewer."""
    threads = faster_threads(most)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
        say(f"computing with {threads} of {most} threads" + ", which is faster while other programs compute" * (threads < most))


def _begun_in(run: Path) -> str | None:
    """The dtype that an interrupted demo computes in, whatever is faster now; None where its record cannot be read."""
    try:
        return str(json.loads((run / RECORD).read_text(encoding="utf-8"))["recipe"]["decoder"]["dtype"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `train` says what is wrong with it


def demo_recipe(name: str, overrides: list[str]) -> Recipe:
    """A recipe of the demo. Raises: DehvfError where the repository's recipes are not there."""
    path = RECIPES / name
    if not path.is_file():
        raise DehvfError(f"the demo needs the repository's recipes/{name}; clone the repository and run `make demo` in it")
    return load_recipe(path, overrides)


def _unnoted(progress: Progress) -> Callable[[str, int, int], None]:
    return lambda stage, done, total: progress(stage, done, total, "")


def _renamed(progress: Progress, stage: str) -> Progress:
    """The same reports under another name."""
    return lambda _, done, total, note: progress(stage, done, total, note)


def _ask(model: DehvfModel, samples: list[Sample], features: FeatureStore | None, progress: Progress) -> list[Prediction]:
    stage = "answering with DEHVF" if features is not None else "answering without images"
    return answer(model, samples, None, features, lambda done, total: progress(stage, done, total, ""))


def _summary(
    recipe: Recipe,
    model: DehvfModel,
    result: TrainResult,
    blind_result: TrainResult,
    predictions: list[Prediction],
    blind_predictions: list[Prediction],
    seconds: float,
) -> dict[str, Any]:
    import transformers

    scores, blind_scores = accuracy(predictions), accuracy(blind_predictions)
    return {
        "recipe": recipe.name,
        "accuracy": scores["all"]["accuracy"],
        "blind_accuracy": blind_scores["all"]["accuracy"],
        "questions": len(predictions),
        "train_seconds": round(result.seconds, 1),
        "blind_train_seconds": round(blind_result.seconds, 1),
        "total_seconds": round(seconds, 1),
        "steps": result.steps,
        "blind_steps": blind_result.steps,
        "training_questions": result.samples,
        "trained_parameters": sum(parameter.numel() for parameter in model.nodes.parameters()),
        "scores": scores,
        "blind_scores": blind_scores,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"dehvf-kit": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _write(output: Path, summary: dict[str, Any], predictions: list[Prediction], blind: list[Prediction]) -> None:
    for folder, answers in ((output, predictions), (output / BLIND_RUN, blind)):
        rows = [json.dumps(one.row(), ensure_ascii=False) + "\n" for one in answers]
        write_output(folder / PREDICTIONS, "".join(rows))
    write_output(output / "summary.json", json.dumps(summary, indent=2) + "\n")  # the last: where it is, the demo is finished
