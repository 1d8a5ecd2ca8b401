"""Intervals by hand."""

from __future__ import annotations

import math

import pytest
from dehvf_kit_compare.statistics import NORMAL_975, T_975, Mean, mean_interval


def test_three_seeds() -> None:
    """Mean 2, deviation 1: half a width of t(0.975, 2) / sqrt(3)."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half == pytest.approx(4.3027 / math.sqrt(3))


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([0.5]) == Mean(0.5, None, 1)


def test_many_seeds_use_the_normal_quantile() -> None:
    values = [0.0, 1.0] * 20
    deviation = math.sqrt(40 * 0.25 / 39)
    assert mean_interval(values).half == pytest.approx(1.96 * deviation / math.sqrt(40))


def test_no_values_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_the_quantiles() -> None:
    """Student's distribution has closed forms for one, two and four degrees of freedom."""
    p = 0.975
    assert T_975[0] == pytest.approx(math.tan(math.pi * (p - 0.5)), abs=1e-4)
    assert T_975[1] == pytest.approx((2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p))), abs=1e-4)
    root = math.sqrt(4 * p * (1 - p))
    four = 2 * math.sqrt(math.cos(math.acos(root) / 3) / root - 1)
    assert T_975[3] == pytest.approx(four, abs=1e-4)
    assert list(T_975) == sorted(T_975, reverse=True) and T_975[-1] > NORMAL_975
