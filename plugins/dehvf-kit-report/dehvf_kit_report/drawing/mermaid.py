"""A drawing as a Mermaid flowchart, which code hosts and many editors draw."""

from __future__ import annotations

from dehvf_kit_report.drawing.wiring import Box, Drawing, Edge

STYLES = (
    "  classDef tower fill:#e8ebf2,stroke:#7a8499,color:#1d2433",
    "  classDef decoder fill:#e8ebf2,stroke:#7a8499,color:#1d2433",
    "  classDef node fill:#dfeafc,stroke:#3b6fc4,color:#1d2433",
    "  classDef batch fill:#ffffff,stroke:#7a8499,color:#1d2433",
)
SHAPES = {"tower": ("[[", "]]"), "decoder": ("[[", "]]"), "batch": ("([", "])"), "node": ("[", "]")}


def mermaid(drawing: Drawing) -> str:
    """The whole flowchart, top to bottom; hooks are dotted, wires carry port and axes."""
    ids = {box.name: f"n{number}" for number, box in enumerate(drawing.boxes)}
    lines = ["flowchart TB"]
    for box in drawing.boxes:
        opening, closing = SHAPES[box.kind]
        lines.append(f"  {ids[box.name]}{opening}{_quoted(_label(box))}{closing}:::{box.kind}")
    for edge in drawing.edges:
        arrow = "-.->" if edge.attaches or edge.loop else "-->"
        lines.append(f"  {ids[edge.source]} {arrow}|{_quoted(_wire(drawing, edge))}| {ids[edge.target]}")
    return "\n".join([*lines, *STYLES]) + "\n"


def _label(box: Box) -> str:
    lines = [f"<b>{_escaped(box.name)}</b>", *map(_escaped, box.lines)]
    if box.parameters:
        lines.append(f"{box.parameters:,} trained")
    return "<br/>".join(lines)


def _wire(drawing: Drawing, edge: Edge) -> str:
    if edge.attaches:
        return _escaped(edge.source_port)
    port = next(port for port in drawing.box(edge.source).gives if port.name == edge.source_port)
    name = port.name if port.name == edge.target_port else f"{port.name} to {edge.target_port}"
    return "<br/>".join(map(_escaped, (name, " ".join(port.axes))))


def _quoted(text: str) -> str:
    return f'"{text}"'


def _escaped(text: str) -> str:
    """Mermaid's own entities for what would end a label."""
    return text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
