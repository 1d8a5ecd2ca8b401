"""One run of a comparison as plain data: what its own process needs to train and score it, and what it leaves.

A run works in `NAME.working` and renames that folder to `NAME` when everything in it is written, so that a folder under
its final name is a finished run, whatever was killed on the way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dehvf_kit.errors import DehvfError, shown
from dehvf_kit.recipe.files import flat
from dehvf_kit.recipe.recipe import parse_recipe
from dehvf_kit.utils.atomic import exists, write_output

JOB, RESULT, PREDICTIONS, LOG = "job.json", "result.json", "predictions.jsonl", "log.txt"
WORKING = ".working"


@dataclass(frozen=True)
class HoldOut:
    """A validation part of the training split: a share of its images, with at most so many questions."""

    share: float
    questions: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe to train and score. recipe: resolved, with its seed, learning rate and steps.

    hold_out: score on this part of the training split and train on the rest; None scores on the test split. threads and
    plugins (files loaded by `--plugin`) say how to run it, not what it is.
    """

    name: str
    label: str
    recipe: Mapping[str, Any]
    hold_out: HoldOut | None = None
    threads: int = 1
    plugins: tuple[str, ...] = field(default=())

    @property
    def identity(self) -> dict[str, Any]:
        """What determines its result: a finished run is reused if these are equal."""
        hold_out = asdict(self.hold_out) if self.hold_out else None
        recipe = {key: value for key, value in self.recipe.items() if key not in ("description", "published")}
        return {"recipe": recipe, "hold_out": hold_out}

    def folder(self, output: Path) -> Path:
        """Where the finished run is."""
        return output / "runs" / self.name / self.label

    def working_folder(self, output: Path) -> Path:
        """Where it is while it runs, or after it failed."""
        place = self.folder(output)
        return place.with_name(place.name + WORKING)


def write_job(job: Job, folder: Path) -> Path:
    """Write `job.json` into a folder and return its path."""
    return write_json(folder / JOB, asdict(job))


def read_job(file: Path) -> Job:
    """Read a job back. Raises: DehvfError for what is no job."""
    data = read_json(file)
    try:
        data["hold_out"] = HoldOut(**data["hold_out"]) if data["hold_out"] else None
        return Job(**{**data, "plugins": tuple(data["plugins"])})
    except (KeyError, TypeError) as error:
        raise DehvfError(f"{file}: not a job of dehvf-kit compare: {error}") from error


def finished_result(job: Job, output: Path) -> dict[str, Any] | None:
    """The result of a run that is finished already, None where it is not.

    Raises: DehvfError where another run is in its place, naming the fields that differ.
    """
    folder = job.folder(output)
    if not exists(folder):
        return None
    kept = read_job(folder / JOB)
    before, now = replace(kept, recipe=_completed(kept.recipe)).identity, json.loads(json.dumps(job.identity))
    if before != now:
        found, wanted = dict(flat(before)), dict(flat(now))
        keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
        lines = [f"{key.removeprefix('recipe.')}: {shown(found.get(key))}, now {shown(wanted.get(key))}" for key in keys]
        raise DehvfError(f"{folder}: holds a run with other settings; name another --output, or remove it\n  " + "\n  ".join(lines))
    return read_json(folder / RESULT)


def _completed(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A resolved recipe with the fields that the kit has had since then, at their defaults; as it is where it no longer parses."""
    try:
        return json.loads(json.dumps(parse_recipe(recipe).resolved()))
    except DehvfError:
        return recipe


def read_json(file: Path) -> Any:
    """Raises: DehvfError for a file that is missing or no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DehvfError(f"{file}: cannot be read: {error}") from error


def write_json(file: Path, value: Any) -> Path:
    """Write JSON; the file appears whole or not at all."""
    return write_output(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
