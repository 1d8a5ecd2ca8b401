"""Mean and 95% interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom; scipy.stats.t.ppf(0.975, n) gives the same.
T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
NORMAL_975 = 1.9600


@dataclass(frozen=True)
class Mean:
    """A mean over `count` seeds; `half` is half the width of its 95% interval, None for one seed alone."""

    mean: float
    half: float | None
    count: int


def mean_interval(values: Sequence[float]) -> Mean:
    """Student's t interval of the mean: t(0.975, n - 1) * s / sqrt(n). Raises: ValueError for no values."""
    count = len(values)
    if not count:
        raise ValueError("no values")
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    quantile = T_975[count - 2] if count - 1 <= len(T_975) else NORMAL_975
    return Mean(mean, quantile * deviation / math.sqrt(count), count)
