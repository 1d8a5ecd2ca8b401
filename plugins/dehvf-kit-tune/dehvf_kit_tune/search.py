"""What `--search` says: the field of a recipe, and the values to try."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from dehvf_kit.errors import DehvfError

HOW = "wants KEY=A,B,C or KEY=LOW..HIGH, with :log behind it for a range by factors"


@dataclass(frozen=True)
class Axis:
    """A field of the recipe, and where its values come from: `values` of a list, else the range of `distribution`."""

    key: str
    distribution: BaseDistribution
    values: tuple[Any, ...] = ()

    def override(self, value: Any) -> str:
        """A value as `KEY=VALUE`."""
        return f"{self.key}={value if isinstance(value, str) else json.dumps(value)}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that the recipe must accept: all of a list, the two ends of a range."""
        ends = (getattr(self.distribution, "low", None), getattr(self.distribution, "high", None))
        return self.values or ends


def axes(texts: Sequence[str]) -> list[Axis]:
    """Every `--search`. Raises: DehvfError for one that cannot be read, or a field named twice."""
    found = [_axis(text) for text in texts]
    twice = next((one.key for place, one in enumerate(found) if one.key in {other.key for other in found[:place]}), None)
    if twice is not None:
        raise DehvfError(f"--search: '{twice}' is named twice; give all its values at once")
    return found


def _axis(text: str) -> Axis:
    key, equals, given = text.partition("=")
    given, log = (given[: -len(":log")], True) if given.endswith(":log") else (given, False)
    low, dots, high = given.partition("..")
    try:
        if not equals or not key or not given:
            raise ValueError(HOW)
        if dots:
            ends = [yaml.safe_load(end) if "e" not in end.lower() else float(end) for end in (low, high)]
            if all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
                return Axis(key, IntDistribution(*ends, log=log))
            return Axis(key, FloatDistribution(float(ends[0]), float(ends[1]), log=log))
        values = tuple(yaml.safe_load(value) for value in given.split(","))
        if log or not all(isinstance(value, str | int | float | bool | None) for value in values):
            raise ValueError(HOW)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise DehvfError(f"--search: '{text}': {error if str(error) != HOW else HOW}") from error
    return Axis(key, CategoricalDistribution(values), values)


def grid(space: Sequence[Axis]) -> Iterator[Mapping[str, Any]]:
    """Every combination of listed values, the last field changing first. Raises: DehvfError for a range."""
    without = next((axis.key for axis in space if not axis.values), None)
    if without is not None:
        raise DehvfError(f"--search: '{without}' is a range, of which a grid has no points; list its values, or use --sampler tpe")
    for values in itertools.product(*(axis.values for axis in space)):
        yield {axis.key: value for axis, value in zip(space, values, strict=True)}
