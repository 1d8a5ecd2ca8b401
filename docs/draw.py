"""Draws the images of docs/method.md into docs/images, from the kit's own tables: `python docs/draw.py`.

weights.svg needs a trained adapter: `python docs/draw.py --adapter runs/demo/adapter`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dehvf_kit import load_recipe
from dehvf_kit.components.base import GrouperConfig, runs
from dehvf_kit.utils.plotting import INK, MUTED, PALETTE

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
RECIPE = ROOT / "recipes" / "llama7b_clip.yaml"
BOX, GAP, LEFT, RIGHT, WIDTH = 15, 3, 170, 520, 720


def grouping(vision_layers: int, members: Sequence[Sequence[int]], decoder_layers: int) -> str:
    """An SVG: vision layers left, decoder layers right, each group in its colour, bands from read to reader."""
    readers = runs(decoder_layers, len(members))
    height = 60 + max(vision_layers, decoder_layers) * (BOX + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT + 40, 24, "vision layers", bold=True),
        _text(RIGHT + 40, 24, "decoder layers", bold=True),
    ]
    left = (height - 50 - vision_layers * (BOX + GAP)) // 2 + 40
    joined = {layer for layer in range(vision_layers) if sum(layer in group for group in members) > 1}
    for group, (read, readers_of) in enumerate(zip(members, readers, strict=True)):
        colour = PALETTE[group % len(PALETTE)]
        own = [layer for layer in read if layer not in joined] or list(read)
        run = sorted({*own, *(layer for layer in joined if layer - 1 in own or layer + 1 in own)})
        top, bottom = left + run[0] * (BOX + GAP), left + run[-1] * (BOX + GAP) + BOX
        start, end = 40 + readers_of[0] * (BOX + GAP), 40 + readers_of[-1] * (BOX + GAP) + BOX
        middle, between = (LEFT + 80 + RIGHT) // 2, RIGHT - 6
        band = f"M{LEFT + 86} {top} C{middle} {top} {middle} {start} {between} {start} V{end}"
        parts.append(f'<path d="{band} C{middle} {end} {middle} {bottom} {LEFT + 86} {bottom} Z" fill="{colour}" opacity="0.22"/>')
        parts += [_box(LEFT, left + layer * (BOX + GAP), layer + 1, colour) for layer in run]
        parts += [_box(RIGHT, 40 + layer * (BOX + GAP), layer + 1, colour) for layer in readers_of]
        parts.append(_text(LEFT - 14, (top + bottom) // 2 + 4, f"group {group + 1}", anchor="end"))
        parts.append(_text(RIGHT + 94, (start + end) // 2 + 4, f"read group {group + 1}", anchor="start"))
    for layer in joined:
        y = left + layer * (BOX + GAP) + BOX // 2
        parts.append(_text(LEFT - 14, y + 4, "in every group", anchor="end"))
        parts.append(
            f'<rect x="{LEFT - 3}" y="{y - BOX // 2 - 2}" width="86" height="{BOX + 3}" rx="4" fill="none" stroke="{INK}" '
            'stroke-width="1.6"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(x: int, y: int, number: int, colour: str) -> str:
    words = _text(x + 40, y + BOX - 4, str(number), colour=INK)
    return f'<rect x="{x}" y="{y}" width="80" height="{BOX}" rx="3" fill="{colour}" fill-opacity="0.6"/>{words}'


def _text(x: int, y: int, words: str, anchor: str = "middle", colour: str = MUTED, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}"{weight}>{words}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", type=Path, help="a trained adapter, for weights.svg")
    adapter = parser.parse_args().adapter
    graph = load_recipe(RECIPE).check()
    grouper = graph.nodes["grouper"].config
    context = graph.contexts["grouper"]
    assert isinstance(grouper, GrouperConfig) and context.vision is not None
    layers = context.vision.num_layers
    drawing = grouping(layers, grouper.members_of(layers), context.decoder.num_layers)
    (IMAGES / "grouping.svg").write_text(drawing, encoding="utf-8")
    kit = [sys.executable, "-m", "dehvf_kit"]
    subprocess.run([*kit, "graph", RECIPE, "--output", IMAGES / "wiring.svg"], check=True)
    subprocess.run([*kit, "reproduce", "figure2", "--image", IMAGES / "flops.svg"], check=True)
    if adapter is not None:
        words = ["reproduce", "figure4", "--adapter", adapter, "--limit", "300", "--image", IMAGES / "weights.svg"]
        subprocess.run([*kit, *words], check=True)


if __name__ == "__main__":
    main()
