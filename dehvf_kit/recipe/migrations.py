"""Brings recipes of earlier formats to the newest one, step by step, before they are parsed.

A change of the recipe language that older files would not survive adds one to `FORMAT` and a step to `STEPS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

FORMAT = 1
"""Version of the recipe language. The kit reads its own and every earlier one; a recipe without `format` is of the first."""
Step = Callable[[dict[str, Any]], dict[str, Any]]
STEPS: dict[int, Step] = {}
"""From which format -> the function that turns a recipe's plain data into the next one."""


def migrate(raw: Mapping[str, Any], given: int, newest: int = FORMAT, steps: Mapping[int, Step] | None = None) -> dict[str, Any]:
    """A recipe's plain data in the newest format; the given data are left as they are.

    Args:
        raw: the recipe as written.
        given: its format.
        newest: the format to bring it to.
        steps: from which format -> function; `STEPS` if None.
    """
    chain = STEPS if steps is None else steps
    migrated = dict(raw)
    for version in range(given, newest):
        migrated = {**chain[version](migrated), "format": version + 1}
    return migrated
