"""Small charts as inline SVG in the page's own colours: lines, intervals, heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dehvf_kit_report.page import text

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 26, 40
FONT = 12
CELL_X, CELL_Y = 27, 15
Points = Sequence[tuple[float, float]]


def lines(points: Points, x_name: str, y_name: str, logarithmic: bool = False, smooth: bool = True) -> str:
    """A curve: the values thin, their running mean (a tenth to either side) bold. Values that are not finite are skipped.

    logarithmic: the y axis, where all values are positive. An empty text without two points.
    """
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(kept) < 2:
        return ""
    logarithmic = logarithmic and min(y for _, y in kept) > 0
    scale = math.log10 if logarithmic else float
    low, high = (pick(scale(y) for _, y in kept) for pick in (min, max))
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    first, last = (pick(x for x, _ in kept) for pick in (min, max))

    def at(x: float, y: float) -> str:
        right = LEFT + (WIDTH - LEFT - RIGHT) * (x - first) / max(last - first, 1e-12)
        down = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (scale(y) - low) / (high - low)
        return f"{right:.1f},{down:.1f}"

    marks = _powers(low, high) if logarithmic else _ticks(low, high)
    parts = [_open(f"{y_name} by {x_name}")]
    for mark in marks:
        y = at(first, mark).split(",")[1]
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y}' y2='{y}' stroke='var(--line)'/>")
        parts.append(_text(LEFT - 6, float(y) + 4, _short(mark), "end"))
    for mark in _ticks(first, last):
        x = float(at(mark, kept[0][1]).split(",")[0])
        parts.append(_text(x, HEIGHT - BOTTOM + 17, _short(mark), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_name, "middle"))
    parts.append(_text(LEFT, 12, y_name, "start", "var(--ink)"))
    thin = "stroke-width='1' opacity='.45'" if smooth and len(kept) > 9 else "stroke-width='2'"
    parts.append(f"<polyline fill='none' stroke='var(--a)' {thin} points='{' '.join(at(*p) for p in kept)}'/>")
    if smooth and len(kept) > 9:
        path = " ".join(at(*point) for point in _smoothed(kept))
        parts.append(f"<polyline fill='none' stroke='var(--a)' stroke-width='2.4' points='{path}'/>")
    return "".join([*parts, "</svg>"])


def _smoothed(points: Points) -> list[tuple[float, float]]:
    half = max(1, len(points) // 20)
    found = []
    for place, (x, _) in enumerate(points):
        reach = min(half, place, len(points) - 1 - place)
        near = [y for _, y in points[place - reach : place + reach + 1]]
        found.append((x, sum(near) / len(near)))
    return found


def intervals(rows: Sequence[tuple[str, Sequence[tuple[float, float, float]]]], models: Sequence[str]) -> str:
    """Dots with intervals on an axis from 0 to 100: for each row one (value, low, high) a model, in per cent."""
    step = 18 * len(models) + 16
    longest = max((len(name) for name, _ in rows), default=0)
    left, height = 18 + 7.2 * min(longest, 24), 8 + step * len(rows) + 26
    parts = [_open("scores with their intervals", height)]

    def at(value: float) -> float:
        return left + (WIDTH - left - 52) * value / 100

    for mark in (0, 25, 50, 75, 100):
        x = at(mark)
        line = f"<line x1='{x:.1f}' x2='{x:.1f}' y1='8' y2='{height - 22}' stroke='var(--line)'/>"
        parts += [line, _text(x, height - 6, str(mark), "middle")]
    for number, (name, values) in enumerate(rows):
        top = 8 + step * number
        parts.append(_text(left - 10, top + step / 2 + 4, name[:24], "end", "var(--ink)"))
        for model, (value, low, high) in enumerate(values):
            if not all(map(math.isfinite, (value, low, high))):
                continue
            y, colour = top + 17 + 18 * model, f"var(--{'abcd'[model % 4]})"
            parts.append(f"<line x1='{at(low):.1f}' x2='{at(high):.1f}' y1='{y}' y2='{y}' stroke='{colour}' "
                         f"stroke-width='2.5'/><circle cx='{at(value):.1f}' cy='{y}' r='4.5' fill='{colour}'/>")  # fmt: skip
            parts.append(_text(WIDTH - 2, y + 4, f"{value:.1f}", "end", colour))
    return "".join([*parts, "</svg>"])


def heat_map(values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], title: str, x_name: str) -> str:
    """Framed cells of values from 0 to 1, stronger for more, each saying its value; nothing is drawn for None."""
    long = max((len(column) for column in columns), default=0)
    wide = max(CELL_X, 7.4 * long + 6)
    left, top = 14 + 6.6 * max((len(row) for row in rows), default=0), 50
    width, height = left + wide * len(columns) + 4, top + CELL_Y * len(rows) + 4
    parts = [
        f"<svg width='{width:.0f}' height='{height:.0f}' viewBox='0 0 {width:.0f} {height:.0f}' role='img' "
        f"aria-label='{text(title)}' font-size='11' fill='var(--soft)'>",
        _text(left, 14, title, "start", "var(--ink)", 13),
        _text(left, 31, x_name, "start"),
    ]
    for number, column in enumerate(columns):
        parts.append(_text(left + wide * (number + 0.5), top - 5, column, "middle", size=11))
    for row, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + CELL_Y * row
        parts.append(_text(left - 7, y + 11.5, name, "end", size=11))
        for number, value in enumerate(line):
            if value is None:
                continue
            parts.append(
                f"<rect x='{left + wide * number:.1f}' y='{y}' width='{wide - 1:.1f}' height='{CELL_Y - 1}' "
                f"fill='var(--heat)' fill-opacity='{min(value, 1):.3f}' stroke='var(--line)'>"
                f"<title>{text(name)}, {text(columns[number])}: {value:.3f}</title></rect>"
            )
    return f"<div class='wide'>{''.join(parts)}</svg></div>"


def _open(name: str, height: float = HEIGHT) -> str:
    return f"<svg class='chart' viewBox='0 0 {WIDTH} {height:.0f}' role='img' aria-label='{text(name)}' font-size='{FONT}'>"


def _text(x: float, y: float, words: str, anchor: str, fill: str = "var(--soft)", size: int = FONT) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{fill}' font-size='{size}'>{text(words)}</text>"


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two others."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, int(math.floor(high / step + 1e-9)) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two logarithms; the powers alone where there are many, round numbers where few."""
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    found = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    kept = [value for value in found if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    return kept if len(kept) > 1 else _ticks(10**low, 10**high)


def _short(value: float) -> str:
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):
        mantissa, power = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"
