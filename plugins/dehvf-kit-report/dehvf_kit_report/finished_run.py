"""What a run left on disk: adapter, log, answers, and the runs inside it that it is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehvf_kit.adapter.checkpoint import adapter_recipe
from dehvf_kit.adapter.files import ADAPTER, CONFIG, DIGEST, EVALUATIONS, config_file, of_run, read_config
from dehvf_kit.data.metrics.exact_match import Prediction
from dehvf_kit.errors import AdapterError, DataError, DehvfError
from dehvf_kit.utils.atomic import exists, is_file, is_folder

if TYPE_CHECKING:
    from dehvf_kit.recipe.recipe import Recipe

LOG, PREDICTIONS = "log.jsonl", "predictions.jsonl"
MAX_LINE = 1 << 20
FIELDS = ("id", "kind", "question", "image", "answer", "prediction")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run. log: the Trainer's rows; predictions: None where none are kept; baselines: answers of other runs by name."""

    folder: Path
    adapter: Path
    config: Mapping[str, Any]
    recipe: Recipe
    log: list[dict[str, Any]]
    predictions: list[Prediction] | None
    baselines: dict[str, list[Prediction]] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the log that belong to a step."""
        return [row for row in self.log if isinstance(row.get("step"), int)]

    @property
    def steps(self) -> int | None:
        return max((row["step"] for row in self.rows), default=None)


def read_run(folder: Path, predictions: Path | None = None, overrides: Sequence[str] = ()) -> FinishedRun:
    """Read a run folder, or an adapter's own folder.

    predictions: where the answers are, if not in the run. Runs inside the folder that have answers are its baselines.
    Raises: AdapterError for what is neither, DataError for a file that cannot be read.
    """
    adapter = of_run(folder)
    if not is_folder(folder) or not is_file(config_file(adapter)):
        raise AdapterError(
            f"{folder}: no run of dehvf-kit, it has no {ADAPTER}/{CONFIG}; name a folder that `dehvf-kit train` wrote"
        )
    if adapter == folder and folder.name == ADAPTER:
        folder = folder.parent
    config = read_config(adapter)
    recipe = adapter_recipe(config, adapter, overrides)
    found = predictions or newest_answers(folder, adapter, config.get(DIGEST))
    answers = read_predictions(found) if found is not None else None
    baselines = {file.parent.name.replace("_", " "): read_predictions(file) for file in sorted(folder.glob(f"*/{PREDICTIONS}"))}
    log = read_rows(folder / LOG) if is_file(folder / LOG) else []
    return FinishedRun(
        folder=folder, adapter=adapter, config=config, recipe=recipe, log=log, predictions=answers, baselines=baselines
    )


def newest_answers(folder: Path, adapter: Path, weights: Any) -> Path | None:
    """The newest file of answers that `dehvf-kit eval --output` wrote for a run's weights, in its folder or anywhere else."""
    noted = read_rows(folder / EVALUATIONS) if is_file(folder / EVALUATIONS) else []
    files = [Path(str(row.get("predictions"))) for row in noted if row.get("weights") == weights]
    files += [*folder.glob("*.jsonl"), *adapter.glob("*.jsonl")]
    return max((file for file in files if _holds_answers(file)), key=lambda file: file.stat().st_mtime, default=None)


def _holds_answers(file: Path) -> bool:
    """Whether a file is named as answers are, or its first line is one."""
    if not is_file(file):
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:
        first = lines.readline(MAX_LINE)
    try:
        return file.name == PREDICTIONS or set(FIELDS) <= set(json.loads(first))
    except (ValueError, TypeError, RecursionError):
        return False


def read_predictions(file: Path) -> list[Prediction]:
    """Answers as `dehvf-kit eval --output` keeps them. Raises: DataError naming the line that is none."""
    found = []
    for number, row in enumerate(read_rows(file), start=1):
        if not all(isinstance(row.get(name), str) for name in FIELDS):
            raise DataError(f"{file}:{number}: no answer as `dehvf-kit eval --output` keeps it; its fields are {', '.join(FIELDS)}")
        more = {"references": tuple(map(str, row.get("references") or ())), "skipped": str(row.get("skipped") or "")}
        found.append(Prediction(**{name: row[name] for name in FIELDS}, **more))
    if not found:
        raise DataError(f"{file}: holds no answers")
    return found


def read_rows(file: Path) -> list[dict[str, Any]]:
    """JSON objects, one a line. Raises: DataError naming the line that is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: not a JSON object")
        rows.append(row)
    return rows


def refuse_foreign(page: Path, mark: str) -> None:
    """Raises: DehvfError where the page would replace a file that dehvf-kit did not write."""
    if is_folder(page):
        raise DehvfError(f"{page}: is a folder; name a file with --output")
    if exists(page) and mark not in page.read_text(encoding="utf-8", errors="replace")[:4000]:
        raise DehvfError(f"{page}: exists and is no page of dehvf-kit; name another --output")
