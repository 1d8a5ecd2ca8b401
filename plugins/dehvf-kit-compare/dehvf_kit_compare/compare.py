"""Several recipes trained and scored with identical data and budget: tune each by one protocol, then run every seed.

Every run has its own process and folder; finished runs are reused, so that the same command continues after an
interruption, and more seeds or recipes may be added later.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dehvf_kit.data.samples import samples_of
from dehvf_kit.errors import DataError, DehvfError, RecipeError
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit_compare.cpu_hours import CpuHours
from dehvf_kit_compare.job import Job
from dehvf_kit_compare.processes import Outcome, locked, run_jobs
from dehvf_kit_compare.rules import EXTENSIONS, Search, Tuning, require_identical_budget

FOLDER_NAME = re.compile(r"\w[\w.-]*")
FOLDERS = {"rate": "rate", "strength": "scale"}
"""How the folders of tuning runs begin; as earlier comparisons named them, so that their runs are reused."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a comparison runs. tuning: None trains every recipe at its own learning rate; hours: None sets no bound."""

    seeds: int = 3
    tuning: Tuning | None = None
    side_by_side: int = 1
    threads: int = 1
    allowed: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    hours: CpuHours | None = None


@dataclass
class MethodRuns:
    """What is known of one recipe: the search for its base learning rate and its strength, and results by seed.

    The strength that is searched for is a factor on the fields that say how strongly the method acts on the decoder.
    """

    recipe: Recipe
    rate: Search
    strength: Search = field(default_factory=lambda: Search(1.0))
    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def strength_fields(self) -> list[tuple[str, str, float]]:
        """Node, field and the recipe's own value of each field that says how strongly it acts on the decoder."""
        nodes = self.recipe.nodes.items()
        found = [(name, node.config) for name, node in nodes if node.config.strength]
        return [(name, config.strength, getattr(config, config.strength)) for name, config in found]


Update = Callable[[list[MethodRuns]], None]
Run = Callable[[list[tuple[MethodRuns, Job]], str], list[Outcome]]


def compare(
    recipes: Sequence[Recipe],
    output: Path,
    settings: Settings,
    say: Callable[[str], None] = lambda line: None,
    update: Update = lambda methods: None,
) -> list[MethodRuns]:
    """Run the comparison in `output`.

    A run that fails is recorded with its reason, and the others continue; the same call tries it again.

    Args:
        recipes: what to compare; the first is the reference of the differences.
        output: the folder of runs and table.
        settings: seeds, tuning and how to run.
        say: takes a line of progress.
        update: takes all that is known, after every seed's run.

    Raises:
        DehvfError: before anything runs, for recipes that cannot be compared or built, listing every fault.
        OutOfHours: where the hours are used up and runs are left.
    """
    steps = check(recipes, settings)
    methods = [MethodRuns(recipe, Search(recipe.training.base_learning_rate)) for recipe in recipes]
    with locked(output) as lock:

        def run(jobs: list[tuple[MethodRuns, Job]], stage: str) -> list[Outcome]:
            done = 0

            def ended(outcome: Outcome) -> None:
                nonlocal done
                done += 1
                if outcome.job.hold_out is None:
                    owner = next(method for method, job in jobs if job is outcome.job)
                    _take(owner, outcome)
                    update(methods)
                say(f"{stage}, {done} of {len(jobs)} runs: {_progress_line(outcome)}")  # the last: `say` may raise to stop

            return run_jobs([job for _, job in jobs], output, lock, settings.side_by_side, ended=ended, hours=settings.hours)

        if settings.tuning is not None:
            _tune(methods, settings, steps, run)
            for method in methods:
                strength = f", strength times {method.strength.best:g}" if method.strength.tried else ""
                say(f"{method.recipe.name}: base learning rate {method.rate.best:g}{strength}")
        seeds = [(method, _seed_job(method, seed, settings)) for seed in range(settings.seeds) for method in methods]
        run(seeds, "seeds")
    return methods


def check(recipes: Sequence[Recipe], settings: Settings) -> int:
    """Optimiser steps of each recipe. Raises: DehvfError listing every fault of every recipe."""
    faults = []
    names = [recipe.name for recipe in recipes]
    for recipe in recipes:
        if names.count(recipe.name) > 1:
            faults.append(f"{recipe.source}: name: '{recipe.name}' is another recipe's too; results are kept by name")
        if not FOLDER_NAME.fullmatch(recipe.name):
            faults.append(f"{recipe.source}: name: '{recipe.name}' cannot name a folder")
        if recipe.data is None:
            faults.append(f"{recipe.source}: has no `data` section, so there is nothing to train on")
        try:
            recipe.check()
        except RecipeError as error:
            faults.append(str(error))
    if faults:
        raise DehvfError("\n".join(dict.fromkeys(faults)))
    require_identical_budget(recipes, settings.allowed)
    counts = {split: len(samples_of(recipes[0].data, split)) for split in ("train", "test")}
    for split, count in counts.items():
        if not count:
            raise DataError(f"{recipes[0].source}: its {split} split is empty")
    return recipes[0].training.num_steps(counts["train"])


def _tune(methods: Sequence[MethodRuns], settings: Settings, steps: int, run: Run) -> None:
    """Every method's learning rate, then at the best rate its strength; a grid is extended where its best is at its edge."""
    tuning = settings.tuning

    def search(kind: str, grids: list[tuple[MethodRuns, list[float]]]) -> None:
        for _ in range(1 + EXTENSIONS):
            trials = [(method, value) for method, values in grids for value in values]
            jobs = [(method, _tuning_job(method, kind, value, settings, steps)) for method, value in trials]
            outcomes = run(jobs, "tuning") if jobs else []
            for (method, value), outcome in zip(trials, outcomes, strict=True):
                if outcome.result is None:
                    method.errors.append(f"{outcome.job.label}: {outcome.error}")
                else:
                    getattr(method, kind).add(value, outcome.result["scores"]["all"]["accuracy"])
            grids = [(method, getattr(method, kind).beyond()) for method, _ in grids]

    search("rate", [(method, tuning.grid(method.rate.own)) for method in methods])
    if tuning.strengths:
        tuned = [method for method in methods if method.strength_fields and method.rate.tried]
        for method in tuned:
            method.strength.add(1.0, dict(method.rate.tried)[method.rate.best])
        search("strength", [(method, [factor for factor in tuning.strengths if factor != 1]) for method in tuned])


def _tuning_job(method: MethodRuns, kind: str, value: float, settings: Settings, steps: int) -> Job:
    tuning, warm_up = settings.tuning, method.recipe.training.warmup_epochs
    shorter = {
        "max_steps": max(1, round(steps * tuning.fraction)),
        "warmup_epochs": warm_up * tuning.fraction,
        "base_learning_rate": value if kind == "rate" else method.rate.best,
        "seed": 0,
    }
    return _job(method, f"{FOLDERS[kind]}{value:g}", settings, shorter, value if kind == "strength" else 1.0, tuning)


def _seed_job(method: MethodRuns, seed: int, settings: Settings) -> Job:
    training = {"base_learning_rate": method.rate.best, "seed": seed}
    return _job(method, f"seed{seed}", settings, training, method.strength.best, None)


def _job(
    method: MethodRuns, label: str, settings: Settings, training: dict[str, Any], strength: float, tuning: Tuning | None
) -> Job:
    raw = copy.deepcopy(method.recipe.resolved())
    raw["training"] |= training
    for node, name, own in method.strength_fields:
        raw["graph"][node][name] = own * strength
    return Job(
        name=method.recipe.name,
        label=label,
        recipe=raw,
        hold_out=tuning.hold_out if tuning else None,
        threads=settings.threads,
        plugins=settings.plugins,
    )


def _take(method: MethodRuns, outcome: Outcome) -> None:
    if outcome.result is not None:
        method.results.append(outcome.result)
    else:
        method.errors.append(f"{outcome.job.label}: {outcome.error}")


def _progress_line(outcome: Outcome) -> str:
    name = f"{outcome.job.name} {outcome.job.label}"
    if outcome.result is None:
        return f"{name} failed: {outcome.error}"
    score = f"{outcome.result['scores']['all']['accuracy']:.1%}"
    return f"{name} {score}" + (", reused" if outcome.known else f", {outcome.seconds:.0f} s")
