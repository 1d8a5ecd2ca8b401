"""A study: trials of a recipe, each trained in a folder of its own and scored on the validation split."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from dehvf_kit.errors import DehvfError, Stopped
from dehvf_kit.recipe.recipe import Recipe, load_recipe
from dehvf_kit.training.checkpoints import checkpoints
from dehvf_kit.training.run import CHECKPOINTS, Progress, train
from dehvf_kit.training.run_folder import lock_folder
from dehvf_kit.utils.atomic import exists, remove_folder, writing
from dehvf_kit_tune.search import Axis, grid

STORAGE, FOLDER, BEGUN_WITH, FAULT = "study.db", "folder", "begun_with", "fault"
log = logging.getLogger(__name__)


@contextmanager
def storing(file: Path) -> Iterator[None]:
    """Inside, what SQLite refuses becomes one error. Raises: DehvfError for a damaged file, a full disk, one that is read-only."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DehvfError(f"{file}: the study cannot be read or written: {reason}; make room or move the file away") from error


class Tuning:
    """A study in a folder; what is there already is gone on with.

    Args:
        file: the recipe.
        overrides: fields that every trial changes.
        space: what is searched.
        place: the study's folder: `study.db`, and `trial-N` for each trial.
        sampler: `grid` or `tpe`.
        trials: how many to make in all; None: as many as the grid has.
        seed: of the sampler.

    Raises:
        DehvfError: for a value that the recipe refuses (RecipeError), a grid of ranges, or a folder whose study has another recipe
            or another search.
    """

    def __init__(
        self,
        file: Path,
        overrides: Sequence[str],
        space: Sequence[Axis],
        place: Path,
        sampler: str = "tpe",
        trials: int | None = 20,
        seed: int = 0,
    ) -> None:
        self.file, self.space, self.place, self.seed = file, list(space), place, seed
        recipe = load_recipe(file, overrides)
        scored = [] if recipe.training.eval_steps is not None else ["training.eval_steps=epoch"]
        self.overrides = [*overrides, *scored, "training.test_at_end=false"]
        for axis in self.space:
            for value in axis.ends:
                load_recipe(file, [*self.overrides, axis.override(value)])
        points = list(grid(self.space)) if sampler == "grid" else []
        self.trials = trials or len(points)
        self.metric = recipe.training.metric_for_best
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(place)  # until the process ends
        with storing(place / STORAGE):
            self.study = optuna.create_study(
                storage=f"sqlite:///{place / STORAGE}",
                study_name="tune",
                direction="maximize" if self.metric == "score" else "minimize",
                load_if_exists=True,
            )
            self._same_as_before(recipe, sampler)
            for point in points:
                self.study.enqueue_trial(dict(point), skip_if_exists=True)
            for trial in self.study.get_trials(states=[TrialState.RUNNING]):  # interrupted
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params, user_attrs={FOLDER: trial.user_attrs.get(FOLDER, self._name(trial))})

    def _same_as_before(self, recipe: Recipe, sampler: str) -> None:
        space = {axis.key: optuna.distributions.distribution_to_json(axis.distribution) for axis in self.space}
        facts = json.dumps([recipe.resolved(), space, sampler, self.seed], sort_keys=True, default=str)
        digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
        before = self.study.user_attrs.get(BEGUN_WITH)
        if before not in (None, digest):
            raise DehvfError(f"{self.place}: holds a study of another recipe or search; name another folder by --output")
        self.study.set_user_attr(BEGUN_WITH, digest)

    @staticmethod
    def _name(trial: Any) -> str:
        return f"trial-{trial.number}"

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials with a score, or that failed with an error, in their order."""
        ended = self.study.get_trials(deepcopy=False)
        return [one for one in ended if one.state == TrialState.COMPLETE or FAULT in one.user_attrs]

    def run(self, progress: Progress, told: Callable[[FrozenTrial], None] = lambda _: None) -> None:
        """Make the trials that are left. A trial that ends in an error is named, kept as failed, and counts.

        progress: as `train` takes it; told: called with each trial when it is finished. Raises: Stopped after a signal, DehvfError
        where the disk is full; the same call then goes on in the middle of the trial.
        """
        with storing(self.place / STORAGE):
            self._run(progress, told)

    def _run(self, progress: Progress, told: Callable[[FrozenTrial], None]) -> None:
        while (done := len(self.finished)) < self.trials:
            self.study.sampler = optuna.samplers.TPESampler(seed=self.seed + done)
            trial = self.study.ask({axis.key: axis.distribution for axis in self.space})
            trial.set_user_attr(FOLDER, folder := trial.user_attrs.get(FOLDER, self._name(trial)))
            place = self.place / folder
            if exists(place) and not checkpoints(place / CHECKPOINTS):
                remove_folder(place)  # nothing was trained yet
            settings = self.settings(trial.params)
            stage = f"trial {done + 1} of {self.trials}"
            try:
                found = train(
                    load_recipe(self.file, settings),
                    place,
                    resume=exists(place),
                    progress=lambda name, *rest, stage=stage: progress(f"{stage}: {name}", *rest),
                )
            except Stopped:
                raise
            except DehvfError as error:
                if "cannot be written" in str(error):
                    raise  # the disk's fault, not that of these settings
                trial.set_user_attr(FAULT, str(error))
                log.warning("%s failed: %s: %s", folder, " ".join(settings[len(self.overrides) :]), error)
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, found.best[1] if found.best is not None else None)
            told(self.study.get_trials(deepcopy=False)[trial.number])

    def settings(self, params: dict[str, Any]) -> list[str]:
        """Overrides of a trial."""
        return [*self.overrides, *(axis.override(params[axis.key]) for axis in self.space)]

    @property
    def best(self) -> FrozenTrial | None:
        """The trial of the best score, the first among equals; None where none has one."""
        whole = [one for one in self.finished if one.state == TrialState.COMPLETE]
        sign = -1 if self.metric == "score" else 1
        return min(whole, key=lambda one: (sign * one.value, one.number)) if whole else None
