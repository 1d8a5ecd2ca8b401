"""A layered layout, top to bottom: ranks, an order with few crossings, places that keep wires straight.

Source: Sugiyama, Tagawa, Toda, "Methods for visual understanding of hierarchical system structures" (1981): longest-path
ranks, barycentre sweeps, and places as the least squares under the order (pool-adjacent-violators).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SWEEPS, PLACINGS = 12, 24
GAP_X, GAP_Y = 26.0, 46.0
LANE = 14.0  # width kept free where a wire passes a rank


@dataclass(frozen=True)
class Link:
    """An edge that points downwards: from `offset_a` right of the centre of a's lower side to `offset_b` on b's upper side."""

    a: str
    b: str
    offset_a: float = 0.0
    offset_b: float = 0.0


@dataclass
class Layout:
    """Centres (x) and upper sides (y) of all boxes, the way of each link as points, and the size of the whole."""

    x: dict[str, float]
    y: dict[str, float]
    ways: list[list[tuple[float, float]]]
    width: float
    height: float
    ranks: list[list[str]]


@dataclass
class _Item:
    """A box, or the place where a long link passes a rank."""

    key: str
    width: float
    up: list[tuple[str, float, float]] = field(default_factory=list)  # neighbour, its offset, mine
    down: list[tuple[str, float, float]] = field(default_factory=list)


def ranks_of(names: Sequence[str], links: Sequence[Link]) -> dict[str, int]:
    """Each box one rank below the lowest it reads from; one that reads from none is right above its first reader."""
    above: dict[str, set[str]] = {name: set() for name in names}
    below: dict[str, set[str]] = {name: set() for name in names}
    for link in links:
        above[link.b].add(link.a)
        below[link.a].add(link.b)
    rank = dict.fromkeys(names, 0)
    for _ in names:  # no path is longer than that
        for name in names:
            rank[name] = max((rank[other] + 1 for other in above[name]), default=0)
    for name in names:
        if not above[name] and below[name]:
            rank[name] = min(rank[other] for other in below[name]) - 1
    return rank


def lay_out(sizes: Mapping[str, tuple[float, float]], links: Sequence[Link]) -> Layout:
    """Place boxes of these (width, height), which links join without a circle."""
    rank = ranks_of(list(sizes), links)
    rows: list[list[str]] = [[] for _ in range(max(rank.values(), default=0) + 1)]
    items = {name: _Item(name, width) for name, (width, _) in sizes.items()}
    for name in sizes:
        rows[rank[name]].append(name)
    chains = [_chain(number, link, rank, rows, items) for number, link in enumerate(links)]
    _order(rows, items)
    x = _place(rows, items)
    heights = [max((sizes[key][1] for key in row if key in sizes), default=0.0) for row in rows]
    tops = [sum(heights[:number]) + number * GAP_Y for number in range(len(rows))]
    left = min(x[key] - items[key].width / 2 for key in items)
    x = {key: value - left for key, value in x.items()}
    y = {name: tops[rank[name]] + (heights[rank[name]] - sizes[name][1]) / 2 for name in sizes}
    ways = []
    for link, chain in zip(links, chains, strict=True):
        way = [(x[link.a] + link.offset_a, y[link.a] + sizes[link.a][1])]
        way.append((way[0][0], tops[rank[link.a]] + heights[rank[link.a]]))
        for key in chain:
            row = rank[link.a] + 1 + chain.index(key)
            way += [(x[key], tops[row]), (x[key], tops[row] + heights[row])]
        end = (x[link.b] + link.offset_b, y[link.b])
        ways.append([*way, (end[0], tops[rank[link.b]]), end])
    width = max(x[key] + items[key].width / 2 for key in items)
    boxes = [[key for key in row if key in sizes] for row in rows]
    return Layout({name: x[name] for name in sizes}, y, ways, width, tops[-1] + heights[-1], boxes)


def _chain(number: int, link: Link, rank: dict[str, int], rows: list[list[str]], items: dict[str, _Item]) -> list[str]:
    """Join a link's ends through a lane in every rank between them, and return the lanes."""
    chain = [f"\0{number}:{row}" for row in range(rank[link.a] + 1, rank[link.b])]
    for place, key in enumerate(chain):
        items[key] = _Item(key, LANE)
        rows[rank[link.a] + 1 + place].append(key)
    stops = [(link.a, link.offset_a), *((key, 0.0) for key in chain), (link.b, link.offset_b)]
    for (one, mine), (other, theirs) in zip(stops, stops[1:], strict=False):
        items[one].down.append((other, theirs, mine))
        items[other].up.append((one, mine, theirs))
    return chain


def _order(rows: list[list[str]], items: Mapping[str, _Item]) -> None:
    """Sort every rank by the mean place of its neighbours, down and up in turn, and keep the best order seen."""
    best, fewest = [list(row) for row in rows], _crossings(rows, items)
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        for row in rows[1:] if downwards else rows[-2::-1]:
            place = _packed(rows, items)
            means = {}
            for key in row:
                near = items[key].up if downwards else items[key].down
                means[key] = sum(place[other] + offset for other, offset, _ in near) / len(near) if near else place[key]
            row.sort(key=lambda key: means[key])  # noqa: B023 - used at once
        crossings = _crossings(rows, items)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    rows[:] = best


def _packed(rows: Sequence[Sequence[str]], items: Mapping[str, _Item]) -> dict[str, float]:
    """Centres where the boxes of every rank are side by side, around zero."""
    place = {}
    for row in rows:
        at = -sum(items[key].width + GAP_X for key in row) / 2
        for key in row:
            place[key] = at + items[key].width / 2
            at += items[key].width + GAP_X
    return place


def _crossings(rows: Sequence[Sequence[str]], items: Mapping[str, _Item]) -> int:
    place = _packed(rows, items)
    count = 0
    for row in rows:
        wires = [(place[key] + mine, place[other] + offset) for key in row for other, offset, mine in items[key].down]
        count += sum((a - c) * (b - d) < 0 for n, (a, b) in enumerate(wires) for c, d in wires[:n])
    return count


def _place(rows: Sequence[Sequence[str]], items: Mapping[str, _Item]) -> dict[str, float]:
    """Centres: every item near the mean of what it is wired to, as far as order and gaps allow."""
    place = _packed(rows, items)
    for turn in range(PLACINGS):
        for row in rows if turn % 2 == 0 else rows[::-1]:
            wanted, weights = [], []
            for key in row:
                near = [*items[key].up, *items[key].down]
                pulls = [place[other] + theirs - mine for other, theirs, mine in near]
                wanted.append(sum(pulls) / len(pulls) if pulls else place[key])
                weights.append(4.0 if key.startswith("\0") else 1.0)
            apart = [(items[one].width + items[other].width) / 2 + GAP_X for one, other in zip(row, row[1:], strict=False)]
            place |= dict(zip(row, spread(wanted, weights, apart), strict=True))
    return place


def spread(wanted: Sequence[float], weights: Sequence[float], apart: Sequence[float]) -> list[float]:
    """Places nearest to `wanted` (weighted least squares) whose neighbours are at least `apart` from each other."""
    shifts = [sum(apart[:number]) for number in range(len(wanted))]
    blocks: list[tuple[float, float, int]] = []  # mean, weight, count
    for want, weight, shift in zip(wanted, weights, shifts, strict=True):
        mean, total, count = want - shift, weight, 1
        while blocks and blocks[-1][0] > mean:
            before, heavier, more = blocks.pop()
            mean = (before * heavier + mean * total) / (heavier + total)
            total, count = total + heavier, count + more
        blocks.append((mean, total, count))
    flat = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + shift for mean, shift in zip(flat, shifts, strict=True)]
