"""A comparison as a figure: accuracy with its interval, and what it costs, method by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehvf_kit.utils.atomic import write_output
from dehvf_kit.utils.plotting import INK, MUTED, PALETTE, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = (
    ("trained\nparameters, M", lambda row: row["trained_parameters"] / 1e6),
    ("GFLOPs per question,\nwithout encoder", lambda row: row["flops"]["forward"] / 1e9),
    ("seconds per\ntraining step", lambda row: row["seconds_per_step"]["mean"] if row["seconds_per_step"] else 0.0),
    ("memory of a\ntraining step, MB", lambda row: row["step_memory"]["mean"] / 1e6),
)


def draw(found: Mapping[str, Any], file: Path) -> Path:
    """Write the figure (`.png` or `.svg`). Raises: DehvfError where matplotlib is missing."""
    plt = pyplot()
    rows = [row for row in found["rows"] if "accuracy" in row][::-1]
    names = [row["recipe"] for row in rows]
    figure = plt.figure(figsize=(12, 1.6 + 0.46 * max(3, len(rows))), layout="constrained")
    spaces = figure.add_gridspec(1, 2 + len(COSTS), width_ratios=[1.6, 1.6, *[1] * len(COSTS)])
    accuracy = figure.add_subplot(spaces[0, :2])
    _accuracy(accuracy, rows, names, found["kinds"])
    for place, (title, read) in enumerate(COSTS):
        axes = figure.add_subplot(spaces[0, 2 + place], sharey=accuracy)
        _bars(axes, [read(row) for row in rows], title)
    figure.suptitle(heading(found), fontsize=10, color=MUTED, x=0.01, ha="left")
    try:
        return write_output(file, lambda place: figure.savefig(place, dpi=150))
    finally:
        plt.close(figure)


def heading(found: Mapping[str, Any]) -> str:
    """The test questions and the seeds that have run, which may be fewer than were asked for, or differ between methods."""
    counts = sorted({len(row["seeds"]) for row in found["rows"] if "accuracy" in row})
    seeds = " to ".join(dict.fromkeys(str(count) for count in (counts[0], counts[-1])))
    means = f"mean of {seeds} seeds with 95% interval" if counts[-1] > 1 else "one seed"
    return f"{found['test_questions']:,} test questions, {means}"


def _accuracy(axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], kinds: Sequence[str]) -> None:
    for place, row in enumerate(rows):
        value = row["accuracy"]
        axes.errorbar(
            100 * value["mean"], place, xerr=100 * (value["half"] or 0), fmt="o", color=INK, capsize=4, markersize=6, zorder=3
        )
        axes.scatter([100 * one for one in value["values"]], [place] * value["count"], s=14, color=INK, alpha=0.35, zorder=2)
        axes.annotate(
            f"{100 * value['mean']:.1f}", (100 * value["mean"], place), textcoords="offset points", xytext=(0, 8), ha="center",
            fontsize=8, color=INK,
        )  # fmt: skip
        for colour, kind in zip(PALETTE, kinds, strict=False):
            mean = 100 * row["accuracy_by_kind"][kind]["mean"]
            axes.scatter([mean], [place], marker="|", s=90, color=colour, label=kind if place == 0 else None)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.3)
    most = max([100.0, *(100 * one for row in rows for one in row["accuracy"]["values"])])
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, -0.02 * most), min(right, 1.02 * most))  # an interval of few runs may pass what a share can be
    axes.set_title("accuracy, %", fontsize=9, loc="left", color=INK)
    axes.grid(axis="x", color="#e4e7ee")
    if kinds:
        axes.legend(fontsize=7, frameon=False, ncols=len(kinds), loc="upper center", bbox_to_anchor=(0.5, -0.1))


def _bars(axes: Axes, values: Sequence[float], title: str) -> None:
    axes.barh(range(len(values)), values, color=PALETTE[0], height=0.55)
    for place, value in enumerate(values):
        axes.annotate(f"{value:.3g}", (value, place), textcoords="offset points", xytext=(3, 0), va="center", fontsize=8, color=INK)
    axes.set_xlim(0, 1.3 * max([*values, 1e-9]))
    axes.set_title(title, fontsize=8, loc="left", color=INK)
    axes.tick_params(labelleft=False, left=False)
