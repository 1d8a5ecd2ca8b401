"""Cutting layers into runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dehvf_kit.components.grouper.base import runs


@given(st.integers(1, 60).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count))))
def test_runs_cover_all_layers_in_order_and_differ_by_one_at_most(sizes):
    count, groups = sizes
    cut = runs(count, groups)
    lengths = [len(run) for run in cut]
    assert [layer for run in cut for layer in run] == list(range(count))
    assert len(cut) == groups and min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)
