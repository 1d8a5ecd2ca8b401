"""matplotlib as the kit's figures use it: no display, one look, and a clear word where it is not installed."""

from __future__ import annotations

from typing import Any

from dehvf_kit.errors import DehvfError

INK, MUTED = "#1d2433", "#5a6477"
PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")
"""Paul Tol's bright scheme, which stays apart in the common kinds of colour blindness."""


def pyplot() -> Any:
    """matplotlib.pyplot on a canvas without a display. Raises: DehvfError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise DehvfError("plots need matplotlib: pip install 'dehvf-kit[figures]'") from error
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "svg.hashsalt": "dehvf-kit",
        }
    )
    return plt
