"""Nodes, typed ports and wires: finds the wiring, resolves every axis size, reports every fault at once.

Nothing here imports torch. A port is `"name: axis axis ..."`; `name?` may stay unconnected, `name*` takes several wires.
Each vision encoder offers `patches`, `globals` and `tower`; the batch offers `has_image`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property

from dehvf_kit.api.config import BuildContext, ComponentConfig, ConfigMismatchError
from dehvf_kit.api.plugin_code import plugin_code
from dehvf_kit.api.shapes import Cost, DecoderSpec, VisionSpec
from dehvf_kit.errors import Fault, PluginError, did_you_mean, listing

BATCH = "batch"
DECODER = "decoder"

Sizes = Mapping[str, "int | None"]


@dataclass(frozen=True)
class Port:
    """One end of a wire: its name, its named axes, and whether it is optional or takes many wires."""

    name: str
    axes: tuple[str, ...]
    optional: bool = False
    many: bool = False

    @classmethod
    def parse(cls, text: str) -> Port:
        name, _, axes = text.partition(":")
        name = name.strip()
        return cls(name.rstrip("?*"), tuple(axes.split()), optional=name.endswith("?"), many=name.endswith("*"))

    def __str__(self) -> str:
        return f"{self.name} [{' '.join(self.axes)}]"


def _ports(texts: Iterable[str]) -> dict[str, Port]:
    return {port.name: port for port in map(Port.parse, texts)}


TOWER_PORTS = _ports(
    (
        "patches: batch layer patch vision_hidden",
        "globals: batch layer vision_hidden",
        "tower: layer vision_hidden",
    )
)
BATCH_PORTS = _ports(("has_image: batch",))


@dataclass(frozen=True)
class Wire:
    """A producer's port, written `node.port`."""

    node: str
    port: str

    def __str__(self) -> str:
        return f"{self.node}.{self.port}"


@dataclass(frozen=True)
class Node:
    """A component in its place: what it is, and the wires the recipe spells out for it."""

    name: str
    config: ComponentConfig
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def takes(self) -> Mapping[str, Port]:
        """Its input ports by name."""
        return _ports(self.config.takes)

    @cached_property
    def gives(self) -> Mapping[str, Port]:
        """Its output ports by name."""
        return _ports(self.config.gives)


@dataclass(frozen=True)
class Graph:
    """A checked graph: nodes in the order they run, their wires, what each learned from them, and every port's sizes."""

    nodes: Mapping[str, Node]
    order: tuple[str, ...]
    wires: Mapping[str, Mapping[str, tuple[Wire, ...]]]
    contexts: Mapping[str, BuildContext]
    sizes: Mapping[tuple[str, str], Sizes]
    layers: Mapping[str, tuple[int, ...]]

    def edges(self) -> Iterator[tuple[Wire, str, str]]:
        """All wires as (producer, node, input port)."""
        for name in self.order:
            for port, wires in self.wires[name].items():
                for wire in wires:
                    yield wire, name, port

    def num_params(self, name: str) -> dict[str, int]:
        """A node's trained parameters, term by term. Raises: PluginError."""
        with plugin_code(self.nodes[name].config, f"graph.{name}"):
            return self.nodes[name].config.num_params(self.contexts[name])

    def cost(self, name: str) -> Cost:
        """A node's forward FLOPs. Raises: PluginError."""
        with plugin_code(self.nodes[name].config, f"graph.{name}"):
            return self.nodes[name].config.cost(self.contexts[name])

    def shape(self, wire: Wire, axes: tuple[str, ...]) -> str:
        """`batch layer=24 patch=256 vision_hidden=1024`."""
        sizes = self.sizes[wire.node, wire.port]
        return " ".join(axis if sizes.get(axis) is None else f"{axis}={sizes[axis]}" for axis in axes)


def check_graph(
    nodes: Mapping[str, Node],
    towers: Mapping[str, VisionSpec],
    decoder: DecoderSpec,
    unsure: Set[str] = frozenset(),
) -> tuple[Graph | None, list[Fault]]:
    """Wire and resolve. Returns the graph and no faults, or None and everything that is wrong.

    unsure: nodes and towers whose settings are not known to be right; their wires are checked, sizes behind them are not.
    """
    checker = _Checker(nodes, towers, decoder, unsure)
    graph = checker.run()
    return (None, checker.faults) if checker.faults else (graph, [])


class _Checker:
    def __init__(
        self, nodes: Mapping[str, Node], towers: Mapping[str, VisionSpec], decoder: DecoderSpec, unsure: Set[str]
    ) -> None:
        self.nodes, self.towers, self.decoder, self.unsure = nodes, towers, decoder, unsure
        self.faults: list[Fault] = []
        self.ports: dict[Wire, Port] = {Wire(BATCH, name): port for name, port in BATCH_PORTS.items()}
        for tower in towers:
            self.ports |= {Wire(tower, name): port for name, port in TOWER_PORTS.items()}
        for name, node in nodes.items():
            self.ports |= {Wire(name, output): port for output, port in node.gives.items()}
        self.sizes: dict[tuple[str, str], Sizes] = {(BATCH, "has_image"): {"batch": None}}
        self.encoders: dict[str, frozenset[str]] = {}

    def fault(self, path: str, message: str) -> None:
        self.faults.append(Fault(path, message))

    def run(self) -> Graph | None:
        for name in self.nodes:
            if name in self.towers or name in (BATCH, DECODER):
                self.fault(f"graph.{name}", f"'{name}' is the name of a source already; rename the node")
        if self.faults:
            return None
        wires = self._wire()
        order = self._order(wires)
        if order is None or self.faults:
            return None
        layers = self._layers(wires)
        for tower, spec in self.towers.items():
            sizes = {"layer": len(layers[tower]), "patch": spec.num_patches, "vision_hidden": spec.hidden_size}
            for port in TOWER_PORTS:
                self.sizes[tower, port] = {"batch": None, **sizes}
        contexts = {}
        failed = set(self.nodes) if DECODER in self.unsure else set(self.unsure)
        for name in order:
            self.encoders[name] = frozenset().union(
                *(self._behind(wire) for ports in wires[name].values() for wire in ports)
            )
            if name in failed or any(wire.node in failed for ports in wires[name].values() for wire in ports):
                failed.add(name)
                continue
            context = self._resolve(self.nodes[name], wires[name], layers)
            if context is None:
                failed.add(name)
            else:
                contexts[name] = context
        self._unread(wires)
        return None if self.faults else Graph(self.nodes, order, wires, contexts, self.sizes, layers)

    def _wire(self) -> dict[str, dict[str, tuple[Wire, ...]]]:
        """Every node's wires: the written ones and single ones first, then what ports of many wires find."""
        wires: dict[str, dict[str, tuple[Wire, ...]]] = {name: {} for name in self.nodes}
        gathering = []
        for name, node in self.nodes.items():
            path = f"graph.{name}.inputs"
            for given in node.inputs:
                if given not in node.takes:
                    hint = did_you_mean(given, node.takes)
                    self.fault(
                        f"{path}.{given}", f"no input port is named '{given}'{hint} Ports: {listing(node.takes)}"
                    )
            for port in node.takes.values():
                if port.name in node.inputs:
                    wires[name][port.name] = self._written(node, port)
                elif port.many:
                    gathering.append((node, port))
                else:
                    wires[name][port.name] = self._found(node, port)
        for node, port in gathering:
            wires[node.name][port.name] = self._gathered(node, port, wires)
        return {
            name: {port: wires[name][port] for port in self.nodes[name].takes if wires[name][port]}
            for name in self.nodes
        }

    def _written(self, node: Node, port: Port) -> tuple[Wire, ...]:
        path, given = f"graph.{node.name}.inputs.{port.name}", node.inputs[port.name]
        if len(given) != 1 and not port.many:
            self.fault(path, f"takes one wire, {len(given)} were given: {', '.join(given)}")
            return ()
        return tuple(wire for text in given if (wire := self._find(node, port, text)) is not None)

    def _find(self, node: Node, port: Port, text: str) -> Wire | None:
        path = f"graph.{node.name}.inputs.{port.name}"
        producer, dot, output = text.partition(".")
        wire = Wire(producer, output if dot else port.name)
        producers = {known.node for known in self.ports}
        if wire.node not in producers:
            self.fault(
                path,
                f"no node or encoder is named '{wire.node}'{did_you_mean(wire.node, producers)} Known: {listing(producers)}",
            )
            return None
        if wire not in self.ports:
            outputs = [known.port for known in self.ports if known.node == wire.node]
            self.fault(
                path,
                f"'{wire.node}' has no output port '{wire.port}'{did_you_mean(wire.port, outputs)} It gives: {listing(outputs)}",
            )
            return None
        if self.ports[wire].axes != port.axes:
            fits = [other for other, known in self.ports.items() if known.axes == port.axes and other.node != node.name]
            given = f"[{' '.join(self.ports[wire].axes)}]"
            self.fault(path, f"{wire} gives {given}, which does not fit {port}; what fits: {listing(map(str, fits))}")
            return None
        return wire

    def _found(self, node: Node, port: Port) -> tuple[Wire, ...]:
        path = f"graph.{node.name}.inputs.{port.name}"
        fits = self._fitting(node, port)
        if len(fits) == 1:
            return tuple(fits)
        if len(fits) > 1:
            self.fault(path, f"several nodes give {port}: {', '.join(map(str, fits))}; write one under `inputs:`")
        elif not port.optional:
            self._nothing_gives(node, port)
        return ()

    def _gathered(
        self, node: Node, port: Port, wires: Mapping[str, Mapping[str, tuple[Wire, ...]]]
    ) -> tuple[Wire, ...]:
        """All that gives what a port of many wires takes, but for nodes that read from this one themselves."""
        readers = _readers(node.name, wires)
        fits = [wire for wire in self._fitting(node, port) if wire.node not in readers]
        if not fits:
            self._nothing_gives(node, port)
        return tuple(fits)

    def _fitting(self, node: Node, port: Port) -> list[Wire]:
        return [
            wire
            for wire, known in self.ports.items()
            if wire.port == port.name and wire.node != node.name and known.axes == port.axes
        ]

    def _nothing_gives(self, node: Node, port: Port) -> None:
        others = [str(wire) for wire, known in self.ports.items() if known.axes == port.axes and wire.node != node.name]
        hint = f"; of that shape there is {', '.join(others)}" if others else ""
        last = ""
        for wire, known in self.ports.items():
            strange = [axis for axis in port.axes if axis not in known.axes]
            if wire.port == port.name and wire.node != node.name and strange:
                last = f"; {wire} has no axis '{strange[0]}'{did_you_mean(strange[0], known.axes)} It is {known}"
        self.fault(
            f"graph.{node.name}.inputs.{port.name}",
            f"nothing gives {port}{hint}; add a node that does, or write the wire under `inputs:`{last}",
        )

    def _order(self, wires: Mapping[str, Mapping[str, tuple[Wire, ...]]]) -> tuple[str, ...] | None:
        waiting = {
            name: {wire.node for found in ports.values() for wire in found if wire.node in self.nodes}
            for name, ports in wires.items()
        }
        order: list[str] = []
        while waiting:
            ready = [name for name, needs in waiting.items() if not needs - set(order)]
            if not ready:
                break
            order += ready
            waiting = {name: needs for name, needs in waiting.items() if name not in ready}
        if not waiting:
            return tuple(order)
        cycle = _cycle(waiting)
        self.fault("graph", f"nodes read from each other in a circle: {' <- '.join(cycle)}; cut one of these wires")
        return None

    def _layers(self, wires: Mapping[str, Mapping[str, tuple[Wire, ...]]]) -> dict[str, tuple[int, ...]]:
        """Vision layers read of each tower: what its readers ask for, or all where none has a say."""
        read: dict[str, set[int]] = {tower: set() for tower in self.towers}
        for name, node in self.nodes.items():
            for tower in self._towers_of(wires[name]):
                try:
                    with plugin_code(node.config):
                        asked = node.config.vision_layers(self.towers[tower].num_layers)
                except PluginError as error:
                    asked = None
                    self.fault(f"graph.{name}", str(error))
                except (ZeroDivisionError, ValueError):
                    asked = None
                read[tower] |= {layer for layer in asked or () if 0 <= layer < self.towers[tower].num_layers}
        return {
            tower: tuple(sorted(found)) or tuple(range(self.towers[tower].num_layers)) for tower, found in read.items()
        }

    def _behind(self, wire: Wire) -> frozenset[str]:
        """The encoders a wire carries something of."""
        return frozenset({wire.node}) if wire.node in self.towers else self.encoders.get(wire.node, frozenset())

    def _towers_of(self, ports: Mapping[str, tuple[Wire, ...]]) -> list[str]:
        return sorted({wire.node for wires in ports.values() for wire in wires if wire.node in self.towers})

    def _resolve(
        self,
        node: Node,
        ports: Mapping[str, tuple[Wire, ...]],
        layers: Mapping[str, tuple[int, ...]],
    ) -> BuildContext | None:
        axes: dict[str, int | None] = {
            "decoder_layer": self.decoder.num_layers,
            "decoder_hidden": self.decoder.hidden_size,
        }
        origin = dict.fromkeys(axes, DECODER)
        for name, found in ports.items():
            if node.takes[name].many:
                continue
            for axis, size in self.sizes[found[0].node, found[0].port].items():
                known = axes.get(axis)
                if known is not None and size is not None and known != size:
                    self.fault(
                        f"graph.{node.name}.inputs.{name}",
                        f"axis '{axis}' is {size} from {found[0]} but {known} from {origin[axis]}; they must agree",
                    )
                    return None
                if known is None:
                    axes[axis] = size
                    origin[axis] = str(found[0])
        towers = self._towers_of(ports) or sorted(self.encoders[node.name])
        tower = towers[0] if len(towers) == 1 else None
        context = BuildContext(
            axes,
            self.decoder,
            {name: tuple(self.sizes[wire.node, wire.port] for wire in found) for name, found in ports.items()},
            self.towers[tower] if tower else None,
            layers[tower] if tower else (),
            {name: tuple(tuple(sorted(self._behind(wire))) for wire in found) for name, found in ports.items()},
        )
        try:
            with plugin_code(node.config):
                added = node.config.resolve(context)
        except ConfigMismatchError as error:
            self.fault(f"graph.{node.name}" + (f".{error.field}" if error.field else ""), str(error))
            return None
        except PluginError as error:
            self.fault(f"graph.{node.name}", str(error))
            return None
        axes |= added
        named = {axis for port in node.gives.values() for axis in port.axes}
        unnamed = {axis: size for axis, size in added.items() if axis not in named}  # these travel with every port
        for name, port in node.gives.items():
            self.sizes[node.name, name] = {axis: axes.get(axis) for axis in port.axes} | unnamed
        return context

    def _unread(self, wires: Mapping[str, Mapping[str, tuple[Wire, ...]]]) -> None:
        read = {wire.node for ports in wires.values() for found in ports.values() for wire in found}
        for name, node in self.nodes.items():
            if not node.config.attaches and name not in read:
                self.fault(f"graph.{name}", "nothing reads its outputs; remove the node, or wire it to one that does")


def _readers(name: str, wires: Mapping[str, Mapping[str, tuple[Wire, ...]]]) -> set[str]:
    """All nodes that read from a node, through any number of wires."""
    found: set[str] = set()
    fresh = {name}
    while fresh:
        fresh = {
            reader
            for reader, ports in wires.items()
            if any(wire.node in fresh for found_wires in ports.values() for wire in found_wires)
        } - found
        found |= fresh
    return found


def _cycle(waiting: Mapping[str, set[str]]) -> list[str]:
    """One circle among nodes that wait for each other."""
    path = [next(iter(waiting))]
    while True:
        following = sorted(name for name in waiting[path[-1]] if name in waiting)[0]
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)
