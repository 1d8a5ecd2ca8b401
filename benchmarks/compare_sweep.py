"""Cost of a forward pass against patches, text length, batch and decoder layers, as ratios to the text alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from compare_cases import prefill
from compare_methods import Dehvf, Llava, Method
from compare_shapes import Shapes, frozen_decoder, shell
from compare_timing import interleave, ratio

AXES: dict[str, tuple[int, ...]] = {
    "patches": (64, 144, 256, 576, 1024, 1600, 2304),
    "text": (32, 64, 128, 256, 512),
    "batch": (1, 2, 4, 8),
    "layers": (1, 2, 3, 4),
}
QUICK_AXES = {"patches": (64, 256, 576, 1024), "text": (32, 64), "batch": (1, 2), "layers": (1, 2)}
TEXT, BATCH = 64, 1
SUBJECTS: tuple[type[Method], ...] = (Method, Dehvf, Llava)


def sweep(shapes: Shapes, axes: Mapping[str, Sequence[int]], repetitions: int) -> dict[str, Any]:
    """Per axis and value, each subject's ratio to text only with its interval, and how straight the patches' line is."""
    decoder = frozen_decoder(replace(shapes, layers=max((shapes.layers, *axes.get("layers", ())))))
    found: dict[str, Any] = {"shapes": asdict(shapes), "text": TEXT, "batch": BATCH, "repetitions": repetitions}
    found["axes"] = {axis: _axis(axis, values, shapes, decoder, repetitions) for axis, values in axes.items()}
    patches = found["axes"].get("patches", [])
    found["line"] = {
        name: straightness([point["value"] for point in patches], [point[name]["median"] for point in patches])
        for name in (Dehvf.name, Llava.name)
        if patches
    }
    return found


def _axis(axis: str, values: Sequence[int], shapes: Shapes, decoder: Any, repetitions: int) -> list[dict[str, Any]]:
    cases = {}
    for value in values:
        print(f"sweep: {axis} {value}", flush=True)
        own = replace(shapes, **{axis: value}) if axis in ("patches", "layers") else shapes
        text, batch = value if axis == "text" else TEXT, value if axis == "batch" else BATCH
        for subject in SUBJECTS:
            cases[f"{subject.name} {value}"] = prefill(subject(shell(decoder, own.layers), own), batch, text)
    seconds = interleave(cases, repetitions, warm_up=1)
    points = []
    for value in values:
        base = seconds[f"{Method.name} {value}"]
        ratios = {subject.name: ratio(seconds[f"{subject.name} {value}"], base) for subject in SUBJECTS[1:]}
        points.append({"value": value, **{name: asdict(found) for name, found in ratios.items()}})
    return points


def straightness(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least-squares line through the points: slope, start, R squared, and the largest distance from it relative to the line."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    start = mean_y - slope * mean_x
    left = [b - (start + slope * a) for a, b in zip(x, y, strict=True)]
    spread = sum((b - mean_y) ** 2 for b in y)
    return {
        "slope": slope,
        "start": start,
        "r_squared": 1 - sum(rest**2 for rest in left) / spread if spread else 1.0,
        "largest_residual": max(abs(rest) / (start + slope * a) for rest, a in zip(left, x, strict=True)),
    }
