"""The published tables beside our figures: parameters counted now, scores from runs where there are some."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from dehvf_kit_plan.gpus import GPUS
from dehvf_kit_plan.symbolic import training_flops

from dehvf_kit.api import TowerSizes
from dehvf_kit.costs.parameters import agrees, parameter_table
from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.recipe import Recipe, load_recipe
from dehvf_kit.utils.plain_data import read_yaml
from dehvf_kit.utils.shipped import HOME
from dehvf_kit_baselines.cost_formulas import baseline_costs

ROOT = HOME
PUBLISHED = Path(__file__).with_name("published.yaml")
TABLES = ("table1", "table2", "table3", "table4")
SCORES, SPEED = "scores.json", Path("table2") / "comparison.json"
GPU, UTILISATION = GPUS["a100-80gb"], 0.3
CLIP_LARGE = {"vision_hidden_size": 1024, "vision_layers": 24, "num_patches": 256}
SIZES = {
    "7b": TowerSizes(decoder_hidden_size=4096, decoder_layers=32, decoder_heads=32, num_slots=320, **CLIP_LARGE),
    "13b": TowerSizes(decoder_hidden_size=5120, decoder_layers=40, decoder_heads=40, num_slots=400, **CLIP_LARGE),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method: as published, and ours. ours is None until there is a run.

    parameters_from: where ours come from (the recipe, or a closed formula); matches: whether they round to the published
    figure (None where none is printed); hours: one A100's, estimated; missing: why nothing of ours can be said; footnote: what is
    doubtful about the published figures.
    """

    method: str
    published_parameters: str
    parameters: int | None
    parameters_from: str
    matches: bool | None
    published: tuple[float | None, ...]
    ours: tuple[float | None, ...] | None
    command: str
    hours: float | None
    missing: str
    footnote: str = ""


@lru_cache(maxsize=1)
def published() -> Mapping[str, Any]:
    """The published figures."""
    return read_yaml(PUBLISHED, PUBLISHED.name)


def table(name: str, runs: Path) -> list[Row]:
    """Every row of a table, ours looked up under `runs`. Raises: DehvfError for a result that cannot be read."""
    data = published()[name]
    kind = published()[data["data"]]
    return [_row(row, kind, data["data"], runs) for row in data["rows"]]


def _row(row: Mapping[str, Any], kind: Mapping[str, Any], data: str, runs: Path) -> Row:
    printed = row["parameters"]
    recipe, missing = _recipe(row)
    parameters, source = None, ""
    if recipe is not None:
        parameters, source = parameter_table(recipe.check(), recipe.published).as_published, row["recipe"]
    elif "baseline" in row:
        costs = baseline_costs(SIZES[row.get("size", "7b")])
        found = next(cost for cost in costs if cost.name == row["baseline"])
        parameters, source = found.parameters, f"formula: {found.formula}"
    ours = _speed(row, runs) if data == "speed" else _scores(row, kind["columns"], runs)
    return Row(
        method=row["method"],
        published_parameters=printed,
        parameters=parameters,
        parameters_from=source,
        matches=agrees(parameters, printed) if parameters is not None and printed != "-" else None,
        published=tuple(row["values"]),
        ours=ours,
        command=_command(row, kind, data, runs) if recipe is not None and ours is None else "",
        hours=_hours(recipe, kind["work"]) if recipe is not None and ours is None else None,
        missing=missing,
        footnote=row.get("footnote", ""),
    )


def _recipe(row: Mapping[str, Any]) -> tuple[Recipe | None, str]:
    name = row.get("recipe")
    if name is None:
        return None, "no recipe of ours"
    if not (ROOT / name).is_file():
        return None, f"{name} is not here; it is in the repository"
    try:
        recipe = _checked(ROOT / name)
    except DehvfError as error:
        return None, f"{name} cannot be used: {str(error).splitlines()[0]}"
    return recipe, ""


@cache
def _checked(file: Path) -> Recipe:
    recipe = load_recipe(file)
    recipe.check()
    return recipe


def _scores(row: Mapping[str, Any], columns: list[str], runs: Path) -> tuple[float | None, ...] | None:
    file = runs / row.get("run", "") / SCORES
    if "run" not in row or not file.is_file():
        return None
    found = {name.lower(): value for name, value in _values(_read(file))}
    values = tuple(100 * found[name.lower()] if name.lower() in found else None for name in columns)
    if all(value is None for value in values):
        raise DehvfError(f"{file}: holds none of {', '.join(columns)}; it wants what `dehvf-kit eval --json` prints")
    return values


def _speed(row: Mapping[str, Any], runs: Path) -> tuple[float | None, ...] | None:
    file = runs / SPEED
    if not file.is_file():
        return None
    try:
        found = next((one for one in _read(file)["rows"] if one["recipe"] == row["run"] and "accuracy" in one), None)
        if found is None:
            return None
        return found["seconds_per_step"]["mean"], 32 * found["answer_seconds_per_question"]["mean"]
    except (KeyError, TypeError) as error:
        raise DehvfError(f"{file}: not what `dehvf-kit compare` writes: no {error}") from error


def _values(data: Any) -> Iterator[tuple[str, float]]:
    """Every `name: {"value": figure}` in nested mappings."""
    if isinstance(data, Mapping):
        for name, inner in data.items():
            if isinstance(inner, Mapping) and isinstance(inner.get("value"), (int, float)):
                yield str(name), float(inner["value"])
            else:
                yield from _values(inner)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DehvfError(f"{file}: cannot be read: {error}") from error


def _command(row: Mapping[str, Any], kind: Mapping[str, Any], data: str, runs: Path) -> str:
    overrides = row.get("overrides", kind["overrides"])
    changes = f" {overrides}" if overrides else ""
    folder = runs / row["run"]
    if data == "speed":
        recipes = [other["recipe"] for other in published()["table2"]["rows"] if (ROOT / other["recipe"]).is_file()]
        return f"dehvf-kit compare {' '.join(recipes)}{changes} --seeds 1 --output {runs / SPEED.parent}"
    return (
        f"dehvf-kit train {row['recipe']}{changes} --output {folder} && "
        f"dehvf-kit eval {folder / 'adapter'} --json > {folder / SCORES}"
    )


def _hours(recipe: Recipe, work: Mapping[str, int]) -> float:
    """Hours of training on one A100: samples x epochs x FLOPs per sample / (TFLOPS x utilisation)."""
    flops = training_flops(recipe, work["tokens"], work["answer"])
    return work["samples"] * work["epochs"] * flops / (GPU.tflops * 1e12 * UTILISATION) / 3600
