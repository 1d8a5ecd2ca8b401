"""A checked graph as boxes and wires, ready to be drawn in any way: towers, nodes, the decoder, ports with their axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dehvf_kit.recipe.graph import BATCH, BATCH_PORTS, DECODER, TOWER_PORTS, Graph, Wire

if TYPE_CHECKING:
    from dehvf_kit.api.shapes import DecoderSpec, VisionSpec
    from dehvf_kit.recipe.graph import Node
    from dehvf_kit.recipe.recipe import Recipe

PLACES = {"decoder": "on its layers", "vision": "on its blocks", "input": "in the input"}
"""Where a component that hooks itself somewhere works: on the decoder, inside an encoder, or in the decoder's input."""
TARGETS = {"decoder": "layers", "vision": "blocks", "input": "text"}


@dataclass(frozen=True)
class PortLabel:
    """A port and its axes, each as `group=4`, or its bare name where the size varies."""

    name: str
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """One thing on the drawing. kind: batch, tower, node or decoder; repeated: layers of a tower, 1 elsewhere.

    takes, gives: its ports; lines: what it is, below its name; parameters: trained in it.
    """

    name: str
    kind: str
    lines: tuple[str, ...]
    takes: tuple[str, ...] = ()
    gives: tuple[PortLabel, ...] = ()
    repeated: int = 1
    parameters: int = 0


@dataclass(frozen=True)
class Edge:
    """A wire from an output port to an input port. attaches: it is a hook, not data; loop: it closes a circle."""

    source: str
    source_port: str
    target: str
    target_port: str
    attaches: bool = False
    loop: bool = False


@dataclass(frozen=True)
class Drawing:
    """Boxes in the order they run, and every wire between them."""

    title: str
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]

    def box(self, name: str) -> Box:
        return next(box for box in self.boxes if box.name == name)


def draw_recipe(recipe: Recipe) -> Drawing:
    """A recipe's drawing, from both base models' configs alone. Raises: RecipeError listing every fault."""
    graph = recipe.check()
    return draw_graph(graph, recipe, recipe.vision_specs([]))


def draw_graph(graph: Graph, recipe: Recipe, towers: Mapping[str, VisionSpec]) -> Drawing:
    """A checked graph's drawing. recipe: names the base models; towers: sizes of the encoders."""
    edges = tuple(_edges(graph, towers))
    used = {(edge.source, edge.source_port) for edge in edges}
    boxes = []
    if any(edge.source == BATCH for edge in edges):
        boxes.append(Box(BATCH, "batch", ("the samples",), (), _tower_ports(graph, BATCH, used)))
    for name, spec in towers.items():
        takes = tuple(dict.fromkeys(edge.target_port for edge in edges if edge.target == name))
        boxes.append(_tower(graph, name, spec, recipe.vision[name].model, takes, used))
    boxes += [_node(graph, name) for name in graph.order]
    decoder = graph.contexts[graph.order[0]].decoder
    takes = tuple(dict.fromkeys(edge.target_port for edge in edges if edge.target == DECODER))
    boxes.append(_decoder(decoder, recipe.decoder.model, takes))
    return Drawing(recipe.description or recipe.name, tuple(boxes), edges)


def _tower(graph: Graph, name: str, spec: VisionSpec, model: str, takes: tuple[str, ...], used: set[tuple[str, str]]) -> Box:
    read = len(graph.layers[name])
    lines = (model or spec.model_type, f"frozen, {spec.num_layers} layers of {spec.hidden_size}, {read} read")
    return Box(name, "tower", lines, takes, _tower_ports(graph, name, used), spec.num_layers)


def _decoder(spec: DecoderSpec, model: str, takes: tuple[str, ...]) -> Box:
    lines = (model or spec.model_type, f"frozen, {spec.num_layers} layers of {spec.hidden_size}")
    return Box(DECODER, "decoder", lines, takes, (), spec.num_layers)


def _node(graph: Graph, name: str) -> Box:
    node = graph.nodes[name]
    kind = node.config.type if node.config.role == name else f"{node.config.role} {node.config.type}"
    parameters = sum(graph.num_params(name).values())
    gives = [PortLabel(port.name, _axes(graph, name, port.name, port.axes)) for port in node.gives.values()]
    if node.config.attaches:
        gives.append(PortLabel(PLACES[node.config.attaches]))
    return Box(name, "node", (kind,), tuple(graph.wires[name]), tuple(gives), parameters=parameters)


def _tower_ports(graph: Graph, name: str, used: set[tuple[str, str]]) -> tuple[PortLabel, ...]:
    ports = (BATCH_PORTS if name == BATCH else TOWER_PORTS).values()
    return tuple(PortLabel(port.name, _axes(graph, name, port.name, port.axes)) for port in ports if (name, port.name) in used)


def _axes(graph: Graph, node: str, port: str, axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(graph.shape(Wire(node, port), (axis,)) for axis in axes)


def _edges(graph: Graph, towers: Mapping[str, VisionSpec]) -> Iterator[Edge]:
    """All wires, then all hooks. A node inside an encoder closes a circle with it: one of its two edges is the loop."""
    inside = {name for name in graph.order if graph.nodes[name].config.attaches == "vision"}
    for wire, node, port in graph.edges():
        loop = node in inside and wire.port == "tower" and node not in _downstream(graph, wire.node)
        yield Edge(wire.node, wire.port, node, port, loop=loop)
    for name in graph.order:
        place = graph.nodes[name].config.attaches
        if not place:
            continue
        target = _tower_of(graph, graph.nodes[name], towers) if place == "vision" else DECODER
        loop = place == "vision" and name in _downstream(graph, target)
        yield Edge(name, PLACES[place], target, TARGETS[place], attaches=True, loop=loop)


def _tower_of(graph: Graph, node: Node, towers: Mapping[str, VisionSpec]) -> str:
    return next(wire.node for wires in graph.wires[node.name].values() for wire in wires if wire.node in towers)


def _downstream(graph: Graph, tower: str) -> set[str]:
    """All nodes that read a tower's features, through any number of wires."""
    found = {tower}
    for name in graph.order:
        sources = [wire for wires in graph.wires[name].values() for wire in wires if wire.port != "tower"]
        if any(wire.node in found for wire in sources):
            found.add(name)
    return found - {tower}
