"""The image of a probe: accuracy of every layer for every kind of question."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dehvf_kit.utils.atomic import write_output
from dehvf_kit.utils.plotting import pyplot
from dehvf_kit_probe.probe import Probed


def draw_heat_map(probed: Probed, file: Path) -> Path:
    """An SVG or PNG, by the file's ending: a row for each kind, a column for each layer, the best layer framed.

    Raises: DehvfError where the file cannot be written.
    """
    plt = pyplot()
    values = np.array([[layer.accuracy for layer in kind.layers] for kind in probed.kinds])
    figure, axes = plt.subplots(figsize=(2.2 + 0.5 * probed.num_layers, 1.1 + 0.42 * len(probed.kinds)), layout="constrained")
    axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for row, kind in enumerate(probed.kinds):
        for column, layer in enumerate(kind.layers):
            colour = "white" if layer.accuracy < 0.6 else "black"
            axes.text(column, row, f"{layer.accuracy:.0%}"[:-1], ha="center", va="center", color=colour, fontsize=8)
        best = kind.best.layer
        axes.add_patch(plt.Rectangle((best - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#ee6677", linewidth=2))
    axes.set_xticks(range(probed.num_layers), [str(layer + 1) for layer in range(probed.num_layers)])
    axes.set_yticks(range(len(probed.kinds)), [f"{kind.name} (chance {kind.chance:.0%})" for kind in probed.kinds])
    axes.set_xlabel("encoder layer")
    axes.set_title(f"Linear probes of {probed.encoder}: accuracy in percent, best layer framed", fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    try:
        return write_output(
            file, lambda part: figure.savefig(part, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
        )
    finally:
        plt.close(figure)
