"""Nothing overlaps, wires run downwards, neighbours keep their distance."""

from __future__ import annotations

import random

import pytest
from dehvf_kit_report.drawing.layout import GAP_X, Link, lay_out, ranks_of, spread


def test_ranks_follow_the_longest_path_and_sources_stand_right_above_their_readers() -> None:
    links = [Link("a", "b"), Link("b", "c"), Link("a", "c"), Link("late", "c")]
    assert ranks_of(["late", "c", "b", "a"], links) == {"a": 0, "b": 1, "c": 2, "late": 1}


def test_spread_keeps_what_fits_and_shares_what_does_not() -> None:
    assert spread([0, 10], [1, 1], [5]) == [0, 10]
    assert spread([0, 1], [1, 1], [5]) == [-2, 3]  # 4 too near: 2 each
    assert spread([0, 1], [3, 1], [5]) == [-1, 4]  # the heavier one gives way less
    assert spread([10, 0, 5], [1, 1, 1], [1, 1]) == [4, 5, 6]


@pytest.mark.parametrize("seed", range(5))
def test_boxes_do_not_overlap_and_wires_pass_beside_them(seed: int) -> None:
    chance = random.Random(seed)
    names = [f"n{number}" for number in range(12)]
    sizes = {name: (chance.uniform(40, 200), chance.uniform(20, 90)) for name in names}
    links = [Link(a, b) for place, a in enumerate(names) for b in names[place + 1 :] if chance.random() < 0.25]
    found = lay_out(sizes, links)
    for row in found.ranks:
        ordered = sorted(row, key=lambda name: found.x[name])
        for one, other in zip(ordered, ordered[1:], strict=False):
            free = found.x[other] - found.x[one] - (sizes[one][0] + sizes[other][0]) / 2
            assert free > GAP_X - 1e-6
    for link, way in zip(links, found.ways, strict=True):
        heights = [y for _, y in way]
        assert heights == sorted(heights) and way[0][1] < way[-1][1]
        for (x, y), (right, down) in zip(way, way[1:], strict=False):
            for name in set(names) - {link.a, link.b}:
                left, top = found.x[name] - sizes[name][0] / 2, found.y[name]
                inside = left < x < left + sizes[name][0] and y < top + sizes[name][1] and down > top
                assert not (inside and x == right), f"a wire from {link.a} to {link.b} runs through {name}"
    assert all(sizes[n][0] / 2 - 1e-6 <= found.x[n] <= found.width - sizes[n][0] / 2 + 1e-6 for n in names)
