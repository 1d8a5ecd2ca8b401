"""The figure of a sweep: LLaVA-style and DEHVF as multiples of the text alone, against what drives the cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = {"DEHVF": "#0072b2", "LLaVA-style": "#d55e00"}
LABELS = {"text": "text tokens", "batch": "batch", "layers": "decoder layers", "patches": "patches"}


def draw(sweep: Mapping[str, Any], file: Path) -> None:
    """Five panels: patches with both subjects, patches with DEHVF alone and its line, then text, batch and layers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "compare", "axes.grid": True, "grid.alpha": 0.3}
    pyplot.rcParams.update(style)
    figure = pyplot.figure(figsize=(9, 6), layout="constrained")
    grid = figure.add_gridspec(2, 6)
    both, alone = figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])
    _lines(both, "patches", sweep)
    _line(alone, "patches", sweep, "DEHVF", joined=False)
    line = sweep["line"]["DEHVF"]
    ends = [sweep["axes"]["patches"][place]["value"] for place in (0, -1)]
    label = f"straight line, R² = {line['r_squared']:.4f}"
    alone.plot(ends, [line["start"] + line["slope"] * end for end in ends], "--", color="black", linewidth=1, label=label)
    alone.set_ylim(bottom=min(1.0, alone.get_ylim()[0]))
    both.set_title("Cost of an image against its patches")
    alone.set_title("The same, DEHVF alone")
    alone.legend(frameon=False)
    for place, axis in enumerate(axis for axis in ("text", "batch", "layers") if axis in sweep["axes"]):
        _lines(figure.add_subplot(grid[1, 2 * place : 2 * place + 2]), axis, sweep)
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, dpi=110, metadata=metadata)
    pyplot.close(figure)


def _lines(axes: Any, axis: str, sweep: Mapping[str, Any]) -> None:
    for name in COLOURS:
        _line(axes, axis, sweep, name)
    axes.axhline(1, color="grey", linewidth=1, linestyle=":", label="text only")
    axes.set_ylim(bottom=0)
    if axis == "patches":
        axes.legend(frameon=False)


def _line(axes: Any, axis: str, sweep: Mapping[str, Any], name: str, joined: bool = True) -> None:
    points = sweep["axes"][axis]
    medians = [point[name]["median"] for point in points]
    spread = [[abs(point[name][end] - point[name]["median"]) for point in points] for end in ("low", "high")]
    style = {"marker": "o", "markersize": 4, "capsize": 2, "color": COLOURS[name], "label": name}
    style["linestyle"] = "-" if joined else "none"
    axes.errorbar([point["value"] for point in points], medians, yerr=spread, **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(LABELS[axis])
    axes.set_ylabel("forward pass / text only")
