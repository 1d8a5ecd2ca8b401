"""A comparison as rows, and the rows as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dehvf_kit.utils.atomic import write_output
from dehvf_kit.utils.units import si
from dehvf_kit_compare.compare import MethodRuns, Settings
from dehvf_kit_compare.job import write_json
from dehvf_kit_compare.statistics import mean_interval

MEANS = {
    "seconds_per_step": lambda result: result["seconds_per_step"],
    "answer_seconds_per_question": lambda result: result["answer_seconds_per_question"],
    "step_memory": lambda result: result["memory"]["peak"] - result["memory"]["rest"],
    "peak_memory": lambda result: result["memory"]["peak"],
}
NOTES = (
    "Accuracy in percent on the test split: mean over seeds and 95% interval of that mean (Student's t). "
    "FLOPs are what torch counts in matrix products, a multiply-add being two: per question forward without the encoder, per "
    "image through the encoder, and per training step (forward and backward of a batch). "
    "Seconds per step: median. Step memory: what training takes beyond what is allocated before its first step (weights, "
    "features, libraries); peak memory: all of it."
)


def table(methods: Sequence[MethodRuns], settings: Settings) -> dict[str, Any]:
    """All that is known as plain data: rows in the order of the recipes, tuning protocol, machine and versions."""
    results = [result for method in methods for result in method.results]
    kinds = list(dict.fromkeys(kind for result in results for kind in result["scores"]["by_kind"]))
    first = results[0] if results else {}
    return {
        "rows": [_row(method, methods[0], kinds) for method in methods],
        "kinds": kinds,
        "seeds": settings.seeds,
        "test_questions": first["scores"]["all"]["questions"] if first else None,
        "training_questions": first.get("training_questions"),
        "steps": first.get("steps"),
        "batch": first.get("batch"),
        "tuning": settings.tuning.words() if settings.tuning else None,
        "allowed_to_differ": list(settings.allowed),
        "side_by_side": settings.side_by_side,
        "machines": sorted({result["machine"] for result in results}),
        "dates": sorted({result["date"] for result in results}),
        "versions": _distinct(result["versions"] for result in results),
        "errors": [f"{method.recipe.name} {error}" for method in methods for error in method.errors],
    }


def _row(method: MethodRuns, first: MethodRuns, kinds: Sequence[str]) -> dict[str, Any]:
    results = sorted(method.results, key=lambda result: result["seed"])
    row: dict[str, Any] = {
        "recipe": method.recipe.name,
        "description": method.recipe.description,
        "base_learning_rate": method.rate.best,
        "tried": [{"base_learning_rate": rate, "validation_accuracy": score} for rate, score in method.rate.tried],
        "at_the_edge": method.rate.at_the_edge,
        "scale": method.strength.best,
        "scales_tried": [{"scale": scale, "validation_accuracy": score} for scale, score in method.strength.tried],
        "scale_at_the_edge": method.strength.at_the_edge,
        "seeds": [result["seed"] for result in results],
    }
    if not results:
        return row
    row["accuracy"] = _mean([result["scores"]["all"]["accuracy"] for result in results])
    row["accuracy_by_kind"] = {kind: _mean([result["scores"]["by_kind"][kind]["accuracy"] for result in results]) for kind in kinds}
    row["difference_to_first"] = _difference(results, first.results) if method is not first else None
    row["trained_parameters"] = results[0]["trained_parameters"]
    row["flops"] = results[0]["flops"]
    for name, read in MEANS.items():
        values = [read(result) for result in results]
        row[name] = None if None in values else _mean(values)
    return row


def _difference(results: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Accuracy less the first recipe's, seed by seed: equal seeds see the examples in the same order."""
    theirs = {result["seed"]: result["scores"]["all"]["accuracy"] for result in first}
    pairs = [result["scores"]["all"]["accuracy"] - theirs[result["seed"]] for result in results if result["seed"] in theirs]
    return _mean(pairs) if pairs else None


def _mean(values: Sequence[float]) -> dict[str, Any]:
    found = mean_interval(values)
    return {"mean": found.mean, "half": found.half, "count": found.count, "values": list(values)}


def _distinct(versions: Any) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for one in versions:
        for name, version in one.items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(several) for name, several in found.items()}


def percent(value: Mapping[str, Any] | None, sign: bool = False) -> str:
    """`97.1 ± 0.4`, in percent; `-` for nothing."""
    if value is None:
        return "-"
    mean = f"{100 * value['mean']:{'+' if sign else ''}.1f}"
    return mean if value["half"] is None else f"{mean} ± {100 * value['half']:.1f}"


def cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows as texts, for terminals and Markdown."""
    head = ["method", "accuracy", *found["kinds"], "vs first", "seeds", "trained", "FLOPs per question", "per image", "per step"]
    head += ["s per step", "ms per question", "step memory", "peak memory", "base learning rate"]
    scaled = any(row["scales_tried"] for row in found["rows"])
    if scaled:
        head.append("strength")
    rows = []
    for row in found["rows"]:
        tuned = [f"{row['base_learning_rate']:g}" + (" (edge)" if row["at_the_edge"] else "")]
        if scaled:
            tuned.append(f"x {row['scale']:g}" + (" (edge)" if row["scale_at_the_edge"] else ""))
        if "accuracy" not in row:
            rows.append([row["recipe"], "not run", *["-"] * (len(head) - 2 - len(tuned)), *tuned])
            continue
        flops = row["flops"]
        rows.append(
            [
                row["recipe"],
                percent(row["accuracy"]),
                *(percent(row["accuracy_by_kind"][kind]) for kind in found["kinds"]),
                percent(row["difference_to_first"], sign=True),
                str(len(row["seeds"])),
                f"{row['trained_parameters']:,}",
                si(flops["forward"], ""),
                si(flops["encoder"], ""),
                si(flops["train_step"], ""),
                _number(row["seconds_per_step"], 1, 3),
                _number(row["answer_seconds_per_question"], 1000, 1),
                _bytes(row["step_memory"]),
                _bytes(row["peak_memory"]),
                *tuned,
            ]
        )
    return head, rows


def _number(value: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value['mean']:.{digits}f}"


def _bytes(value: Mapping[str, Any] | None) -> str:
    return "-" if value is None else si(value["mean"], "B")


def markdown(found: Mapping[str, Any], title: str = "Comparison") -> str:
    """The table, the scores of tuning, and how the figures were measured."""
    head, rows = cells(found)
    lines = [f"# {title}", "", _line(head), _line(["---"] + ["---:"] * (len(head) - 1)), *map(_line, rows), "", NOTES, ""]
    if found["steps"]:
        lines += [
            f"{found['training_questions']:,} training questions, {found['steps']:,} steps of {found['batch']}; "
            f"{found['test_questions']:,} test questions; seeds 0 to {found['seeds'] - 1}.",
            "",
        ]
    if found["tuning"]:
        lines += ["## Tuning", "", found["tuning"], "", *_tuning_table(found), ""]
    if found["allowed_to_differ"]:
        lines += [f"Allowed to differ between the recipes: {', '.join(found['allowed_to_differ'])}.", ""]
    versions = ", ".join(f"{name} {'/'.join(several)}" for name, several in found["versions"].items())
    beside = f", {found['side_by_side']} runs side by side" if found["side_by_side"] > 1 else ""
    if found["dates"]:
        dates = " to ".join(dict.fromkeys([found["dates"][0], found["dates"][-1]]))
        lines += [f"Run {dates} on {' and '.join(found['machines'])}{beside}; {versions}.", ""]
    if found["errors"]:
        lines += ["## Runs that failed", "", *(f"- {error}" for error in found["errors"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _tuning_table(found: Mapping[str, Any]) -> list[str]:
    """Validation accuracies of every method; the chosen ones in bold."""
    scaled = any(row["scales_tried"] for row in found["rows"])
    head = ["method", "base learning rate: validation accuracy", *(["strength: validation accuracy"] if scaled else [])]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in found["rows"]:
        rates = [(one["base_learning_rate"], one["validation_accuracy"]) for one in row["tried"]]
        cells = [row["recipe"], _trials(rates, row["base_learning_rate"]) or "none finished; its own is used"]
        if scaled:
            scales = [(one["scale"], one["validation_accuracy"]) for one in row["scales_tried"]]
            cells.append(_trials(scales, row["scale"]) or "none")
        lines.append(_line(cells))
    return lines


def _trials(scores: Sequence[tuple[float, float]], chosen: float) -> str:
    texts = [(value, f"{value:g}: {score:.1%}") for value, score in scores]
    return " · ".join(f"**{text}**" if value == chosen else text for value, text in texts)


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def comma_separated(found: Mapping[str, Any]) -> str:
    """One line per recipe with plain numbers: fractions, bytes, seconds, FLOPs."""
    kinds = found["kinds"]
    head = ["recipe", "seeds", "base_learning_rate", "scale", "accuracy", "accuracy_half"]
    head += [f"accuracy {kind}{end}" for kind in kinds for end in ("", " half")]
    head += ["trained_parameters", "flops_forward", "flops_encoder", "flops_train_step", *MEANS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in found["rows"]:
        line: list[Any] = [row["recipe"], len(row["seeds"]), row["base_learning_rate"], row["scale"]]
        if "accuracy" in row:
            for value in [row["accuracy"], *(row["accuracy_by_kind"][kind] for kind in kinds)]:
                line += [value["mean"], value["half"]]
            line += [row["trained_parameters"], *row["flops"].values()]
            line += [row[name]["mean"] if row[name] else None for name in MEANS]
        writer.writerow(line + [None] * (len(head) - len(line)))
    return text.getvalue()


def write_table(found: Mapping[str, Any], output: Path) -> None:
    """`comparison.md`, `.csv` and `.json` in the output folder, each whole or as before."""
    write_json(output / "comparison.json", found)
    write_output(output / "comparison.md", markdown(found))
    write_output(output / "comparison.csv", comma_separated(found))
