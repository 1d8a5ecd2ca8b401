"""How many examples a fuzz test runs."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings

EXAMPLES = int(os.environ.get("DEHVF_KIT_FUZZ", "200"))


def share(part: float) -> Any:
    """Hypothesis settings for a part of the examples: the same ones every time, no time limit but our own."""
    return settings(
        max_examples=max(1, round(EXAMPLES * part)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
