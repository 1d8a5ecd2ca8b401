"""`write_report`: a run's page, from its folder, its recipe and, where the base models are installed, the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.adapter.checkpoint import load
from dehvf_kit.data.metrics.scores import Scores
from dehvf_kit.data.samples import Sample, samples_of
from dehvf_kit.errors import DehvfError
from dehvf_kit.model.builder import build_on_meta
from dehvf_kit.utils.atomic import check_new_files, write_output
from dehvf_kit_report import sections
from dehvf_kit_report.cost_section import cost_section
from dehvf_kit_report.drawing.wiring import draw_graph
from dehvf_kit_report.finished_run import FinishedRun, read_run, refuse_foreign
from dehvf_kit_report.inside import Inside, look_inside
from dehvf_kit_report.page import MARK, Section, missing, page
from dehvf_kit_report.repeat_section import repeat_section
from dehvf_kit_report.worth_section import worth_sections

PAGE = "report.html"
Progress = Callable[[str, int, int], None]


def write_report(
    folder: Path,
    output: Path | None = None,
    predictions: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int = 64,
    maps: int = 6,
    inside: Inside | None = None,
    title: str = "",
    progress: Progress = lambda *_: None,
    worth: int = 64,
    more: Sequence[Section] = (),
) -> dict[str, Any]:
    """Write a run's page. What is merely absent is mentioned on the page.

    Args:
        folder: the run.
        output: the page; None is `report.html` in the run.
        predictions: its answers, where they are not in the run.
        overrides: `key=value` changes to the adapter's recipe, such as another test set.
        limit: images that the fuser's weights are averaged over.
        maps: images that a memory map is made of.
        inside: results of `look_inside` for the model in memory; without them the adapter is loaded.
        title: the page's title; the recipe's name where it is empty.
        progress: takes a stage, what is done of it, and how much there is.
        worth: questions that are asked again with the fuser's weights replaced; 0 asks none.
        more: further sections, placed after the scores.

    Returns:
        {"page", "recipe", "sections": {title: whether it has its data}}.

    Raises:
        AdapterError: for what is no run.
        DataError: for files in it that cannot be read.
        DehvfError: where the page would replace a file that dehvf-kit did not write.
    """
    run = read_run(folder, predictions, overrides)
    target = output or run.folder / PAGE
    refuse_foreign(target, MARK)
    check_new_files({}, {"--output": target})
    samples, no_samples = _samples(run)
    if inside is None:
        inside = _inside(run, overrides, samples, no_samples, (limit, maps, worth), progress)
    scores = sections.scored(run, run.predictions)
    parts = [
        *_counted(run),
        sections.curves_section(run),
        sections.scores_section(run, run.recipe.name, scores),
        *more,
        *sections.layers_sections(run, inside),
        *worth_sections(inside),
        sections.memory_section(run, inside),
        sections.answers_section(run, samples),
        repeat_section(run),
    ]
    parts.insert(-1, parts.pop(1))  # costs come before the last
    described = run.recipe.description or "An adapter of dehvf-kit."
    write_output(target, page(title or run.recipe.name, described, _facts(run, scores), parts))
    has = {part.title: "class='missing'" not in part.body for part in parts}
    return {"page": str(target), "recipe": run.recipe.name, "sections": has}


def _samples(run: FinishedRun) -> tuple[dict[str, Sample], str]:
    """The test split by id, or the reason why there is none."""
    if run.recipe.data is None:
        return {}, sections.NO_DATA
    try:
        return {sample.id: sample for sample in samples_of(run.recipe.data, "test")}, ""
    except DehvfError as error:
        return {}, f"The data set cannot be read here: {error}"


def _inside(
    run: FinishedRun,
    overrides: Sequence[str],
    samples: Mapping[str, Sample],
    no_samples: str,
    counts: tuple[int, int, int],
    progress: Progress,
) -> Inside:
    limit, maps, worth = counts
    if no_samples or not samples:
        why = no_samples or "The test split is empty."
        return Inside(why={"layers": why, "maps": why, "base": why})
    try:
        progress("loading the adapter", 0, 1)
        model = load(run.adapter, overrides=overrides)
        progress("loading the adapter", 1, 1)
        return look_inside(model, list(samples.values()), limit, maps, progress=progress, worth=worth)
    except DehvfError as error:
        why = f"The adapter cannot be loaded and run here: {error}"
        return Inside(why={"layers": why, "maps": why, "base": why})


def _counted(run: FinishedRun) -> list[Section]:
    """Graph and costs, which need only the base models' configs."""
    try:
        model = build_on_meta(run.recipe)
        drawing = draw_graph(model.graph, run.recipe, {name: tower.spec for name, tower in model.towers.items()})
        return [sections.recipe_section(run, drawing), cost_section(model)]
    except DehvfError as error:
        costs = missing(f"Nothing can be counted here: {error}")
        return [sections.recipe_section(run, error), Section("costs", "Parameters and costs", costs)]


def _facts(run: FinishedRun, scores: Any) -> list[tuple[str, str]]:
    facts = []
    if isinstance(scores, Scores):
        main = scores.headline
        unit = "%" if main.percent else ""
        facts.append((f"{100 * main.value:.{main.digits}f}{unit}", f"{main.name}, {main.count:,} test questions"))
    count = run.config.get("trainable_parameters")
    if isinstance(count, int):
        facts.append((f"{count:,}", "trained parameters"))
    if run.steps is not None:
        facts.append((f"{run.steps:,}", f"steps of {run.recipe.training.batch_size}"))
    runtime = next((row["train_runtime"] for row in reversed(run.log) if "train_runtime" in row), None)
    if isinstance(runtime, int | float):
        facts.append((f"{runtime / 60:.1f} min", "training"))
    return facts
