"""A drawing as SVG: boxes with their ports, wires as smooth curves; light and dark by what the reader prefers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dehvf_kit_report.drawing.layout import Layout, Link, lay_out
from dehvf_kit_report.drawing.wiring import Box, Drawing, Edge, PortLabel

MARGIN = 16
TITLE, TEXT, SMALL = 14, 11.5, 10.5  # font sizes in pixels
WIDE = 0.6  # a generous width of a letter, in font sizes; names are drawn in a proportional font
STYLE = """
.dg{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;--ink:#1d2433;--soft:#5a6477;--wire:#8a93a6;
--node:#e3edfc;--node-line:#3b6fc4;--tower:#eceff4;--tower-line:#7a8499;--paper:#fff;--hook:#b4552d}
@media(prefers-color-scheme:dark){.dg{--ink:#e6e9f0;--soft:#a3acbe;--wire:#77819a;--node:#1c2f4f;--node-line:#6c9df0;
--tower:#2a303d;--tower-line:#8b95aa;--paper:#151922;--hook:#e8915f}}
.dg .paper{fill:var(--paper)}.dg text{fill:var(--ink)}.dg .soft{fill:var(--soft)}.dg .wire{fill:none;stroke:var(--wire);
stroke-width:1.6}.dg .hook{fill:none;stroke:var(--hook);stroke-width:1.8;stroke-dasharray:5 3}.dg .tip{fill:var(--wire)}
.dg .hooktip{fill:var(--hook)}.dg .node{fill:var(--node);stroke:var(--node-line);stroke-width:1.3}.dg .tower,.dg .decoder
{fill:var(--tower);stroke:var(--tower-line);stroke-width:1.3}.dg .batch{fill:var(--paper);stroke:var(--tower-line)}
.dg .rule{stroke:var(--wire);stroke-width:.5;opacity:.6}
"""


@dataclass
class _Shape:
    """A box with the ports of its upper and lower side in the order they are drawn, and its size."""

    box: Box
    top: list[PortLabel]
    bottom: list[PortLabel]

    @property
    def head(self) -> list[str]:
        trained = [f"{self.box.parameters:,} trained"] if self.box.parameters else []
        return [*self.box.lines, *trained]

    @property
    def widths(self) -> tuple[float, float, float]:
        """Of the text in the middle, and of both rows of ports."""
        text = max(len(self.box.name) * TITLE * WIDE, *(len(line) * TEXT * 0.54 for line in self.head))
        return text, sum(map(_column, self.top)), sum(map(_column, self.bottom))

    @property
    def width(self) -> float:
        return max(96.0, *self.widths) + 20

    @property
    def top_height(self) -> float:
        return _rows(self.top)

    @property
    def height(self) -> float:
        return self.top_height + 24 + 15 * len(self.head) + _rows(self.bottom) + 6

    def offset(self, ports: Sequence[PortLabel], name: str) -> float:
        """Where a port is, right of the box's centre. Ports share the whole width."""
        spare = (self.width - sum(map(_column, ports))) / max(1, len(ports))
        at = -self.width / 2
        for port in ports:
            wide = _column(port) + spare
            if port.name == name:
                return at + wide / 2
            at += wide
        return 0.0


def _column(port: PortLabel) -> float:
    longest = max([len(port.name) * TEXT * 0.58, *(len(axis) * SMALL * 0.56 for axis in port.axes)])
    return longest + 14


def _rows(ports: Sequence[PortLabel]) -> float:
    return max((18 + 13 * len(port.axes) for port in ports), default=0)


def svg(drawing: Drawing) -> str:
    """The whole drawing, with its own style; no scripts, no fonts, no external files."""
    shapes = {box.name: _shape(drawing, box) for box in drawing.boxes}
    for _ in range(2):
        layout = lay_out({n: (s.width, s.height) for n, s in shapes.items()}, _links(drawing, shapes))
        if not _sort_ports(drawing, shapes, layout):
            break
    layout = lay_out({n: (s.width, s.height) for n, s in shapes.items()}, _links(drawing, shapes))
    width, height = layout.width + 2 * MARGIN, layout.height + 2 * MARGIN
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' class='dg' viewBox='0 0 {width:.0f} {height:.0f}' width='{width:.0f}' "
        f"height='{height:.0f}' role='img' aria-label='{escape(drawing.title, quote=True)}'>",
        f"<style>{STYLE}</style>",
        "<defs>" + "".join(_tip(name) for name in ("tip", "hooktip")) + "</defs>",
        "<rect class='paper' width='100%' height='100%'/>",
        f"<g transform='translate({MARGIN},{MARGIN})'>",
    ]
    parts += [_wire(edge, way) for edge, way in zip(drawing.edges, layout.ways, strict=True)]
    parts += [_drawn(shape, layout.x[name], layout.y[name]) for name, shape in shapes.items()]
    return "\n".join([*parts, "</g></svg>"]) + "\n"


def _shape(drawing: Drawing, box: Box) -> _Shape:
    """Inputs are above and outputs below, except for the ends of a loop, which runs upwards."""
    up_in = {edge.target_port for edge in drawing.edges if edge.loop and edge.target == box.name}
    up_out = {edge.source_port for edge in drawing.edges if edge.loop and edge.source == box.name}
    takes, gives = [PortLabel(name) for name in box.takes], list(box.gives)
    return _Shape(
        box,
        [*(p for p in takes if p.name not in up_in), *(p for p in gives if p.name in up_out)],
        [*(p for p in gives if p.name not in up_out), *(p for p in takes if p.name in up_in)],
    )


def _links(drawing: Drawing, shapes: Mapping[str, _Shape]) -> list[Link]:
    links = []
    for edge in drawing.edges:
        (a, port_a), (b, port_b) = (edge.source, edge.source_port), (edge.target, edge.target_port)
        if edge.loop:
            (a, port_a), (b, port_b) = (b, port_b), (a, port_a)
        one, other = shapes[a], shapes[b]
        links.append(Link(a, b, one.offset(one.bottom, port_a), other.offset(other.top, port_b)))
    return links


def _sort_ports(drawing: Drawing, shapes: Mapping[str, _Shape], layout: Layout) -> bool:
    """Order each box's ports like the boxes at their other ends; True where anything moved."""
    ends: dict[tuple[str, str], list[float]] = {}
    for edge in drawing.edges:
        ends.setdefault((edge.source, edge.source_port), []).append(layout.x[edge.target])
        ends.setdefault((edge.target, edge.target_port), []).append(layout.x[edge.source])
    before = [(list(shape.top), list(shape.bottom)) for shape in shapes.values()]
    for name, shape in shapes.items():
        for ports in (shape.top, shape.bottom):
            far = {port.name: ends.get((name, port.name), [float("inf")]) for port in ports}
            ports.sort(key=lambda port: sum(far[port.name]) / len(far[port.name]))  # noqa: B023 - used at once
    return before != [(shape.top, shape.bottom) for shape in shapes.values()]


def _wire(edge: Edge, way: Sequence[tuple[float, float]]) -> str:
    points = list(way) if not edge.loop else list(way)[::-1]
    (x, y), path = points[0], [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    for right, down in points[1:]:
        if (right, down) == (x, y):  # an arrow at the end of nothing has no direction
            continue
        middle = (y + down) / 2
        straight = abs(right - x) < 0.5
        path.append(
            f"L{right:.1f},{down:.1f}" if straight else f"C{x:.1f},{middle:.1f} {right:.1f},{middle:.1f} {right:.1f},{down:.1f}"
        )
        x, y = right, down
    kind, tip = ("hook", "hooktip") if edge.attaches or edge.loop else ("wire", "tip")
    label = f"{edge.source}.{edge.source_port} to {edge.target}.{edge.target_port}"
    return f"<path class='{kind}' marker-end='url(#dg-{tip})' d='{''.join(path)}'><title>{escape(label)}</title></path>"


def _tip(name: str) -> str:
    return (
        f"<marker id='dg-{name}' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
        f"orient='auto'><path class='{name}' d='M0,0.8L10,5L0,9.2z'/></marker>"
    )


def _drawn(shape: _Shape, x: float, y: float) -> str:
    box, width, height = shape.box, shape.width, shape.height
    left = x - width / 2
    parts = []
    if box.repeated > 1:  # a stack of layers
        parts += [_rect(left + 2 * step, y - 2 * step, width, height, box.kind) for step in (2, 1)]
    parts.append(_rect(left, y, width, height, box.kind))
    at = y + shape.top_height
    parts += [_port(port, x + shape.offset(shape.top, port.name), y + 13) for port in shape.top]
    if shape.top:
        parts.append(_rule(left, width, at))
    parts.append(_text(x, at + 18, box.name, TITLE, "font-weight='650'"))
    for number, line in enumerate(shape.head):
        parts.append(_text(x, at + 34 + 15 * number, line, TEXT, "class='soft'"))
    at += 24 + 15 * len(shape.head) + 4
    if shape.bottom:
        parts.append(_rule(left, width, at))
    parts += [_port(port, x + shape.offset(shape.bottom, port.name), at + 13) for port in shape.bottom]
    return "".join(parts)


def _port(port: PortLabel, x: float, y: float) -> str:
    axes = (_text(x, y + 13 * (n + 1), axis, SMALL, "class='soft'") for n, axis in enumerate(port.axes))
    return _text(x, y, port.name, TEXT) + "".join(axes)


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f"<rect class='{kind}' x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' rx='6'/>"


def _rule(x: float, width: float, y: float) -> str:
    return f"<line class='rule' x1='{x:.1f}' y1='{y:.1f}' x2='{x + width:.1f}' y2='{y:.1f}'/>"


def _text(x: float, y: float, text: str, size: float, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='middle' {more}>{escape(text)}</text>"
