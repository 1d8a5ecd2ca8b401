"""Sixteen methods on the embedded pair at three budgets of trained parameters, tuned by one rule: `budgets.yaml` run and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import dehvf_kit
from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.recipe import Recipe, load_recipe
from dehvf_kit.utils.atomic import is_file, writing
from dehvf_kit.utils.plain_data import read_yaml
from dehvf_kit_baselines.reproduction.embedded import begun_dtype
from dehvf_kit_baselines.reproduction.tables import ROOT

FOLDER, COMPARISON, FIGURE, SHEET = "methods_embedded", "comparison.json", "comparison.png", "comparison.csv"
BUDGETS = ("equal", "quarter", "published")
BATCH, TEST_QUESTIONS = 16, 1000
RATES, STRENGTHS, FRACTION, VALIDATION = (0.016, 0.05, 0.16), (0.33, 1.0, 3.0), 0.35, (0.2, 400)
Say = Callable[[str], None]


@cache
def budgets() -> Mapping[str, Any]:
    """`budgets.yaml` as plain data."""
    file = Path(__file__).with_name("budgets.yaml")
    return read_yaml(file, file.name)


def recipes(budget: str, overrides: Sequence[str] = ()) -> list[Recipe]:
    """The recipe of each method that the budget has, DEHVF's first. Raises: DehvfError where the repository is not there."""
    found = []
    for name, method in budgets()["methods"].items():
        if "trained" not in method[budget]:
            continue
        file = ROOT / method["recipe"]
        if not is_file(file):
            raise DehvfError(f"{file}: is not here; it is in the repository")
        named = [f"name={name}", f"description={method['title']}"]
        found.append(load_recipe(file, [*named, *method[budget].get("set", ()), *overrides]))
    return found


def embedded_methods(
    folder: Path,
    *,
    seeds: int = 3,
    steps: int = 120,
    hours: float = 6.0,
    side_by_side: int = 1,
    say: Say = lambda line: None,
    names: Sequence[str] = BUDGETS,
    overrides: Sequence[str] = (),
    tune: bool = True,
) -> dict[str, dict[str, Any]]:
    """Run the comparison of each budget, one after the other, or go on with one that was interrupted.

    Every run has one thread and a process of its own. Tuning, the same for all: three base learning rates, then two other
    strengths, each for 35% of the steps, scored on held-out training images.

    Args:
        folder: of the runs, a folder below it for each budget.
        seeds: runs of each method, with seeds 0, 1, ...
        steps: optimiser steps of each run, one epoch of training questions, as many of each kind.
        hours: CPU hours of all runs in the folder, those of earlier calls too. What is begun is finished.
        side_by_side: runs at a time.
        say: takes a line of progress.
        names: the budgets to run.
        overrides: changes to all recipes.
        tune: False takes the recipes' own learning rates.

    Returns:
        The table of each budget.

    Raises:
        OutOfHours: where the hours are used up and runs are left.
        DehvfError: where a wheel or the plugin dehvf-kit-compare is not installed, or the folder holds runs with other settings.
    """
    compare = dehvf_kit.compare  # first, for its message where the plugin is not installed
    from dehvf_kit_compare.cpu_hours import CpuHours

    questions = [f"data.train_questions={BATCH * steps}", f"data.test_questions={TEST_QUESTIONS}"]  # one epoch
    data = ["data.balanced=true", *questions]  # or most of them are yes/no, half of which are right without an image
    common = [f"decoder.dtype={begun_dtype(folder)}", *data, f"training.max_steps={steps}", *overrides]
    runs = {name: recipes(name, common) for name in names}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    bound = CpuHours.of(folder, hours)
    tuning = _tuning() if tune else None
    settings: dict[str, Any] = {"seeds": seeds, "tuning": tuning, "threads": 1, "side_by_side": side_by_side, "hours": bound}
    return {
        name: dict(compare(found, folder / name, **settings, say=lambda line, name=name: say(f"{name}: {line}")).table)
        for name, found in runs.items()
    }


def _tuning() -> Any:
    from dehvf_kit_compare.job import HoldOut
    from dehvf_kit_compare.rules import Tuning

    return Tuning(rates=RATES, strengths=STRENGTHS, fraction=FRACTION, hold_out=HoldOut(*VALIDATION))


def sizes() -> tuple[list[str], list[list[str]]]:
    """Head and rows: what each method trains at each budget, and what its structure does not allow."""
    known = budgets()
    rows = []
    for method in known["methods"].values():
        counts, notes = [], []
        for name in BUDGETS:
            at, aim = method[name], known["budgets"][name]["aim"]
            counts.append(f"{at['trained']:,}" if "trained" in at else "-")
            if aim and "trained" in at and abs(at["trained"] / aim - 1) > known["tolerance"]:
                counts[-1] += f" ({at['trained'] / aim - 1:+.1%})"
            if said := at.get("note") or at.get("why"):
                notes.append(f"{name}: {said}")
        rows.append([method["title"], *counts, "; ".join(notes)])
    heads = [f"{name}: {known['budgets'][name]['title']}" for name in BUDGETS]
    return ["method", *heads, "what the structure does not allow, or differs"], rows


def cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one budget's comparison: accuracies, differences from DEHVF seed by seed, cost and what tuning chose."""
    from dehvf_kit_compare.table import percent

    titles = {name: method["title"] for name, method in budgets()["methods"].items()}
    head = ["method", "accuracy", *found["kinds"], "vs DEHVF", "seeds", "trained", "GFLOPs per question", "s per step"]
    head += ["rate", "strength"]
    rows = []
    for row in found["rows"]:
        cells = [titles.get(row["recipe"], row["recipe"])]
        if "accuracy" in row:
            seconds = row["seconds_per_step"]
            cells += [percent(row["accuracy"]), *(percent(row["accuracy_by_kind"][kind]) for kind in found["kinds"])]
            cells += [percent(row["difference_to_first"], sign=True), str(len(row["seeds"])), f"{row['trained_parameters']:,}"]
            cells += [f"{row['flops']['forward'] / 1e9:.2f}", "-" if seconds is None else f"{seconds['mean']:.3f}"]
        else:
            cells += ["not run", *["-"] * (len(head) - 4)]
        cells.append(f"{row['base_learning_rate']:g}" + " (edge)" * row["at_the_edge"])
        cells.append(f"{row['scale']:g}" + " (edge)" * row["scale_at_the_edge"] if row["scales_tried"] else "-")
        rows.append(cells)
    return head, rows


def section(folder: Path, figures: str) -> str:
    """The results page's section from the runs in a folder; `figures`: the page's folder of images and sheets.

    Raises: DehvfError where no budget has been run there.
    """
    from dehvf_kit_compare.job import read_json

    known = budgets()
    parts = []
    for name in BUDGETS:
        if not is_file(folder / name / COMPARISON):
            continue
        found, budget = read_json(folder / name / COMPARISON), known["budgets"][name]
        size = f", {budget['aim']:,}" if budget["aim"] else ""
        parts += [f"### Trained parameters: {budget['title']}{size}", ""]
        head, rows = cells(found)
        parts += [*markdown_table(head, rows, len(head) - 1), ""]
        if is_file(folder / name / FIGURE):
            parts += [f"![Accuracy and cost of the methods, {budget['title']}]({figures}/methods_{name}.png)", ""]
        if without := [f"{one['title']} ({one[name]['why']})" for one in known["methods"].values() if "why" in one[name]]:
            parts += [f"Left out: {', '.join(without)}.", ""]
        parts += [f"Failed: {error}\n" for error in found["errors"]]
        versions = ", ".join(f"{package} {'/'.join(several)}" for package, several in found["versions"].items())
        dates = " to ".join(dict.fromkeys(found["dates"][:1] + found["dates"][-1:]))
        questions = f"{found['training_questions']:,} training and {found['test_questions']:,} test questions"
        parts += [
            f"{found['steps']:,} steps of {found['batch']}, {questions}; {dates}, {' and '.join(found['machines'])}; {versions}"
        ]
        parts += [f"([all columns]({figures}/methods_{name}.csv)).", ""]
    if not parts:
        raise DehvfError(f"{folder}: holds no finished run of the methods; run dehvf-kit reproduce methods --embedded first")
    return "\n".join([*parts, found["tuning"] or "Not tuned.", ""])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], figures: int) -> list[str]:
    """Lines of a table; `figures`: how many columns after the first are aligned to the right."""
    rule = ["---", *["---:"] * figures, *["---"] * (len(head) - 1 - figures)]
    return [f"| {' | '.join(texts)} |" for texts in (head, rule, *rows)]
