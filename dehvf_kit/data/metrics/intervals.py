"""95% intervals: Wilson's for shares, the bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def share(rights: Sequence[bool]) -> dict[str, Any]:
    """{"accuracy", "questions", "low", "high"}: the share of True with its 95% Wilson interval."""
    count, right = len(rights), sum(rights)
    if not count:
        return {"accuracy": math.nan, "questions": 0, "low": math.nan, "high": math.nan}
    z, p = 1.959964, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return {"accuracy": p, "questions": count, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}
