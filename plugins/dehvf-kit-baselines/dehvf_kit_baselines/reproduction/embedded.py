"""Table 4 in miniature: its seven rows, and learned tokens as queries, on the drawings data set with the embedded pair.

The pair is SmolLM2-135M-Instruct and DINOv2 ViT-S/14.
All rows are tuned by one rule and trained with the same seeds, so that a row's difference from DEHVF is taken seed by seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dehvf_kit
from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.recipe import Recipe, load_recipe
from dehvf_kit.utils.atomic import is_file, write_output, writing
from dehvf_kit_baselines.reproduction.tables import ROOT, published

FOLDER = "table4_embedded"
RECIPE = "recipes/smollm2_dinov2_drawings.yaml"
DRAWINGS = ["data.train_scenes=640", "data.test_scenes=150", "data.questions=[kind,colour,texture,side,count,presence]"]
BLIND = [f"graph.{node}=null" for node in ("grouper", "layer_query", "projector", "fuser")]
MEAN = ["graph.layer_query=null", "graph.fuser.type=mean"]
UNPRINTED = "learned tokens as queries"
"""The paper says that it is worse, without a figure; the last row, run when the others are finished."""
ROWS: dict[str, tuple[str, list[str]]] = {
    "DEHVF": ("dehvf", []),
    "w/o visual prompts": ("no_visual_prompts", BLIND),
    "w/o adaptive weights": ("mean_weights", MEAN),
    "w/o multi-features": ("penultimate_only", [*MEAN, "graph.grouper.type=listed", "graph.grouper.groups=[[-2]]"]),
    "keys/values same": ("keys_values_same", ["graph.layer_query.separate_kv=false"]),
    "prompts in keys only": ("keys_only", ["graph.injector.visual_in=[key]"]),
    "prompts in values only": ("values_only", ["graph.injector.visual_in=[value]"]),
    UNPRINTED: ("learned_tokens", ["graph.layer_query.type=learned_tokens"]),
}
"""The table's rows: the name of the runs, and what differs from the recipe; as `recipes/ablations` at 7B."""
RATES, FRACTION, VALIDATION = (0.016, 0.05, 0.16), 0.2, (0.1, 350)
DTYPE, RESULT, MARKDOWN, COMPARISON = "dtype.json", "table4.json", "table4.md", "comparison.json"
Say = Callable[[str], None]


def embedded_table4(
    folder: Path,
    *,
    seeds: int = 5,
    steps: int = 240,
    hours: float = 4.0,
    side_by_side: int = 1,
    say: Say = lambda line: None,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    rows: Sequence[str] = tuple(ROWS),
    tune: bool = True,
) -> dict[str, Any]:
    """Run the table in a folder, or go on with one that was interrupted there; its rows as plain data.

    Every run has one thread and a process of its own. Tuning: three base learning rates at a fifth of the steps, scored on held-out
    training images; the best, or one beyond the grid where the best is at its edge, is used for all seeds.

    Args:
        folder: of the runs; `table4.json` and `table4.md` are written there.
        seeds: runs of each row, with seeds 0, 1, ...
        steps: optimiser steps of each run.
        hours: CPU hours of all runs in the folder, those of earlier calls too. What is begun is finished.
        side_by_side: runs at a time.
        say: takes a line of progress.
        recipe: in place of the drawings recipe.
        overrides: changes to all rows.
        rows: the rows to run; the first is the reference, `UNPRINTED` the last where it is there.
        tune: False takes the recipe's own learning rate.

    Raises:
        OutOfHours: where the hours are used up.
        DehvfError: where a wheel or the plugin dehvf-kit-compare is not installed, or the folder holds runs
            with other settings.
    """
    compare = dehvf_kit.compare  # first, for its message where the plugin is not installed
    from dehvf_kit_compare.cpu_hours import CpuHours, OutOfHours

    tuning = _tuning() if tune else None
    dtype = begun_dtype(folder) if recipe is None else None
    recipes = embedded_recipes(recipe or ROOT / RECIPE, [f"training.max_steps={steps}", *overrides], rows, dtype)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    budget = CpuHours.of(folder, hours)
    settings: dict[str, Any] = {"seeds": seeds, "tuning": tuning, "threads": 1, "side_by_side": side_by_side, "hours": budget}

    def write(compared: Mapping[str, Any]) -> dict[str, Any]:
        found = table4_of(compared, rows) | {"steps": steps, "cpu_hours": round(budget.used / 3600, 3)}
        write_output(folder / RESULT, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        write_output(folder / MARKDOWN, markdown(found))
        return found

    printed = recipes[: sum(row != UNPRINTED for row in rows)]
    try:
        for part in [printed, recipes] if len(printed) < len(recipes) else [recipes]:  # the paper's rows first
            compared = compare(part, folder, **settings, say=say).table
    except OutOfHours:
        if is_file(folder / COMPARISON):
            write(_kept(folder / COMPARISON))
        raise
    return write(compared)


def embedded_recipes(
    recipe: Path, overrides: Sequence[str], rows: Sequence[str] = tuple(ROWS), dtype: str | None = None
) -> list[Recipe]:
    """The recipe of each row; the drawings recipe with fewer scenes, without names, and with this dtype of both models.

    No row learns the drawings' names in so few steps, and their answers are the longest.

    Raises: DehvfError where the repository's recipe is not there.
    """
    if not is_file(recipe):
        raise DehvfError(f"{recipe}: is not here; it is in the repository")
    changes = list(DRAWINGS) if recipe == ROOT / RECIPE else []
    if dtype is not None:
        changes += [f"decoder.dtype={dtype}", f"vision.dtype={dtype}"]
    return [
        load_recipe(recipe, [*changes, *ROWS[row][1], f"name={ROWS[row][0]}", f"description={row}", *overrides]) for row in rows
    ]


def begun_dtype(folder: Path) -> str:
    """The dtype of a folder's runs: the faster one at the first call, kept there, so that any machine goes on with it.

    Raises: DehvfError where the plugin of the embedded pair is missing, or the file cannot be read or written.
    """
    file = folder / DTYPE
    if is_file(file):
        return str(_kept(file))
    try:
        from dehvf_kit_demo.sources import faster_dtype
    except ImportError as error:
        raise DehvfError("the embedded pair needs the plugin dehvf-kit-demo: pip install ./plugins/dehvf-kit-demo") from error
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_output(file, json.dumps(faster_dtype()) + "\n")
    return str(_kept(file))


def table4_of(compared: Mapping[str, Any], rows: Sequence[str] = tuple(ROWS)) -> dict[str, Any]:
    """Every row of a comparison's table, with its differences from the first row, in all and by kind of question."""
    by_name = {row["recipe"]: row for row in compared["rows"]}
    rows = [row for row in rows if ROWS[row][0] in by_name]  # the paper's alone until they are finished
    printed = {row["method"].removesuffix(" 7B"): row["values"][-1] for row in published()["table4"]["rows"]}
    kinds = ["all", *compared["kinds"]]
    first = _values(by_name[ROWS[rows[0]][0]], kinds)
    found = []
    for name in rows:
        row = by_name[ROWS[name][0]]
        values = _values(row, kinds)
        found.append(
            {
                "method": name,
                "published": printed.get(name),
                "base_learning_rate": row["base_learning_rate"],
                "at_the_edge": row["at_the_edge"],
                "seeds": row["seeds"],
                "accuracy": {kind: _interval(list(values[kind].values())) for kind in kinds if values[kind]},
                "difference": {kind: _paired(values[kind], first[kind]) for kind in kinds if name != rows[0]},
            }
        )
    facts = {
        name: compared[name]
        for name in ("test_questions", "training_questions", "tuning", "machines", "dates", "versions", "errors")
    }
    return {"rows": found, "kinds": kinds, **facts}


def _values(row: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, dict[int, float]]:
    """Accuracy by kind and seed."""
    if "accuracy" not in row:
        return {kind: {} for kind in kinds}
    by_kind = {"all": row["accuracy"], **row["accuracy_by_kind"]}
    return {kind: dict(zip(row["seeds"], by_kind[kind]["values"], strict=True)) for kind in kinds}


def _paired(values: Mapping[int, float], first: Mapping[int, float]) -> dict[str, Any] | None:
    """The interval of the difference from the first row over the seeds that both have; None without any."""
    pairs = [value - first[seed] for seed, value in values.items() if seed in first]
    return _interval(pairs) if pairs else None


def _interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and half of Student's 95% interval over seeds, which one seed alone does not have."""
    from scipy import stats

    half = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)) if len(values) > 1 else None
    return {"mean": sum(values) / len(values), "half": half, "count": len(values)}


def _kept(file: Path) -> Any:
    from dehvf_kit_compare.job import read_json

    return read_json(file)


def _tuning() -> Any:
    from dehvf_kit_compare.job import HoldOut
    from dehvf_kit_compare.rules import Tuning

    return Tuning(rates=RATES, fraction=FRACTION, hold_out=HoldOut(*VALIDATION))


def percent(value: Mapping[str, Any] | None, sign: bool = False) -> str:
    """`83.8 ± 1.7`, in percent; `-` for nothing."""
    if value is None:
        return "-"
    half = "" if value["half"] is None else f" ± {100 * value['half']:.1f}"
    return f"{100 * value['mean']:{'+' if sign else ''}.1f}{half}"


def cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: accuracies, then differences from the first row by kind of question."""
    head = ["method", "published", "accuracy", "seeds", "rate", *(f"vs DEHVF: {kind}" for kind in found["kinds"])]
    rows = []
    for row in found["rows"]:
        rate = f"{row['base_learning_rate']:g}" + (" (edge)" if row["at_the_edge"] else "")
        against = [percent(row["difference"].get(kind), sign=True) for kind in found["kinds"]]
        accuracy = percent(row["accuracy"].get("all")) if row["seeds"] else "not run"
        shown = "-" if row["published"] is None else f"{row['published']:.2f}"
        rows.append([row["method"], shown, accuracy, str(len(row["seeds"])), rate, *against])
    return head, rows


def markdown(found: Mapping[str, Any]) -> str:
    """The table and how it was measured."""
    head, rows = cells(found)
    lines = ["# Table 4 in miniature", "", _line(head), _line(["---"] + ["---:"] * (len(head) - 1)), *map(_line, rows), ""]
    lines += [
        "Accuracy in percent on the drawings' test split, mean over seeds and Student's 95% interval; differences seed by seed."
    ]
    if found["dates"]:
        lines += ["", f"{found['steps']:,} steps; {found['cpu_hours']:.1f} CPU hours; {found['dates'][0]}, {found['machines'][0]}."]
    if found["tuning"]:
        lines += ["", found["tuning"]]
    return "\n".join([*lines, *(f"\nfailed: {error}" for error in found["errors"])]) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"
