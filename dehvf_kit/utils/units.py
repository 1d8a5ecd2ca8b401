"""Figures as people read them."""

from __future__ import annotations

PREFIXES = ("", "k", "M", "G", "T", "P")


def si(value: float, unit: str) -> str:
    """Three digits and a decimal prefix: `si(168_000_000, "B")` is "168 MB"."""
    size, step = float(value), 0
    while abs(size) >= 999.5 and step < len(PREFIXES) - 1:
        size, step = size / 1000, step + 1
    digits = 0 if step == 0 or abs(size) >= 99.95 else 1 if abs(size) >= 9.995 else 2
    return f"{size:.{digits}f} {PREFIXES[step]}{unit}".rstrip()


def ratio(value: float, base: float) -> str:
    """`value` as a multiple of `base`: "1.02 x"."""
    return f"{value / base:.2f} x" if base else "-"
