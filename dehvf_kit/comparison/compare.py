"""Several recipes trained and scored on one ground: tune alike, run every seed, gather the table.

Every run is a process of its own and a folder of its own; what is finished is taken over, so that the same command goes
on after an interruption, and more seeds or recipes may be added later.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dehvf_kit.comparison.job import Job
from dehvf_kit.comparison.processes import Outcome, locked, run_jobs
from dehvf_kit.comparison.rules import Tuning, best_rate, require_one_ground
from dehvf_kit.data.samples import samples_of
from dehvf_kit.errors import DataError, DehvfError, RecipeError
from dehvf_kit.recipe import Recipe
from dehvf_kit.training.config import TrainingConfig

FOLDER_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Settings:
    """How a comparison runs. tuning: None trains every recipe at its own learning rate."""

    seeds: int = 3
    tuning: Tuning | None = None
    side_by_side: int = 1
    threads: int = 1
    allowed: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()


@dataclass
class MethodRuns:
    """What is known of one recipe: tried learning rates with their validation accuracy, the one used, results by seed."""

    recipe: Recipe
    learning_rate: float
    tried: list[tuple[float, float]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def at_the_edge(self) -> bool:
        """Whether the best learning rate is the lowest or highest of its grid, so that a wider one may do better."""
        rates = [rate for rate, _ in self.tried]
        return len(rates) > 2 and self.learning_rate in (rates[0], rates[-1])


Update = Callable[[list[MethodRuns]], None]


def compare(
    recipes: Sequence[Recipe],
    output: Path,
    settings: Settings,
    say: Callable[[str], None] = lambda line: None,
    update: Update = lambda methods: None,
) -> list[MethodRuns]:
    """Run the comparison in `output`; `update` is called with all that is known whenever a seed's run has ended.

    A run that fails is noted with its reason, and the others go on; the same call tries it again.
    Raises: DehvfError, before anything runs, for recipes that cannot be compared or built, listing every fault.
    """
    steps = check(recipes, settings)
    methods = [MethodRuns(recipe, recipe.training.base_learning_rate) for recipe in recipes]
    with locked(output) as lock:

        def run(jobs: list[tuple[MethodRuns, Job]], stage: str) -> list[Outcome]:
            done = 0

            def ended(outcome: Outcome) -> None:
                nonlocal done
                done += 1
                say(f"{stage}, {done} of {len(jobs)} runs: {_told(outcome)}")
                if outcome.job.hold_out is None:
                    owner = next(method for method, job in jobs if job is outcome.job)
                    _take(owner, outcome)
                    update(methods)

            return run_jobs([job for _, job in jobs], output, lock, settings.side_by_side, ended=ended)

        if settings.tuning is not None:
            jobs = [(method, job) for method in methods for job in _tuning_jobs(method, settings, steps)]
            outcomes = run(jobs, "tuning")
            for method in methods:
                own = [outcome for (owner, _), outcome in zip(jobs, outcomes, strict=True) if owner is method]
                _choose(method, own)
                say(f"{method.recipe.name}: base learning rate {method.learning_rate:g}")
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
        raise DehvfError("\n".join(faults))
    require_one_ground(recipes, settings.allowed)
    counts = {split: len(samples_of(recipes[0].data, split)) for split in ("train", "test")}
    for split, count in counts.items():
        if not count:
            raise DataError(f"{recipes[0].source}: its {split} split is empty")
    return _steps(recipes[0].training, counts["train"])


def _steps(config: TrainingConfig, samples: int) -> int:
    """As the trainer counts them; here so that torch stays out of this process."""
    per_epoch = math.ceil(samples / (config.batch_size * config.gradient_accumulation))
    return config.max_steps or max(1, math.ceil(per_epoch * config.epochs))


def _tuning_jobs(method: MethodRuns, settings: Settings, steps: int) -> list[Job]:
    tuning = settings.tuning
    config = method.recipe.training
    jobs = []
    for rate in tuning.grid(config.base_learning_rate):
        shorter = {
            "max_steps": max(1, round(steps * tuning.fraction)),
            "warmup_epochs": config.warmup_epochs * tuning.fraction,
            "base_learning_rate": rate,
            "seed": 0,
        }
        jobs.append(_job(method, f"rate{rate:g}", settings, shorter, tuning))
    return jobs


def _seed_job(method: MethodRuns, seed: int, settings: Settings) -> Job:
    return _job(method, f"seed{seed}", settings, {"base_learning_rate": method.learning_rate, "seed": seed}, None)


def _job(method: MethodRuns, label: str, settings: Settings, training: dict[str, Any], tuning: Tuning | None) -> Job:
    raw = copy.deepcopy(method.recipe.resolved())
    raw["training"] |= training
    hold_out = tuning.hold_out if tuning else None
    return Job(method.recipe.name, label, raw, hold_out, settings.threads, settings.plugins)


def _choose(method: MethodRuns, outcomes: Sequence[Outcome]) -> None:
    method.tried = [
        (one.result["base_learning_rate"], one.result["scores"]["all"]["accuracy"]) for one in outcomes if one.result
    ]
    method.errors += [f"{one.job.label}: {one.error}" for one in outcomes if not one.result]
    if method.tried:
        method.learning_rate = best_rate(method.tried)


def _take(method: MethodRuns, outcome: Outcome) -> None:
    if outcome.result is not None:
        method.results.append(outcome.result)
    else:
        method.errors.append(f"{outcome.job.label}: {outcome.error}")


def _told(outcome: Outcome) -> str:
    name = f"{outcome.job.name} {outcome.job.label}"
    if outcome.result is None:
        return f"{name} failed: {outcome.error}"
    score = f"{outcome.result['scores']['all']['accuracy']:.1%}"
    return f"{name} {score}" + (", from before" if outcome.known else f", {outcome.seconds:.0f} s")
