"""Nodes, typed ports and wires: finds the wiring, resolves every axis size, reports every fault at once.

Nothing here imports torch. A port is `"name: axis axis ..."`; `name?` may stay unconnected, `name*` takes several wires.
Each vision encoder offers `patches`, `globals` and `tower`; the batch offers `has_image`, `text_row` and the
question's embeddings with their mask, `prompt` and `prompt_mask`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property

from dehvf_kit.api.config import BuildContext, ComponentConfig, ConfigMismatchError
from dehvf_kit.api.registry import plugin_code
from dehvf_kit.api.shapes import Cost, DecoderSpec, VisionSpec
from dehvf_kit.errors import Fault, PluginError, did_you_mean, listing

BATCH, DECODER = "batch", "decoder"
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


_PATCHES, _GLOBALS, _TOWER = "batch layer patch vision_hidden", "batch layer vision_hidden", "layer vision_hidden"
TOWER_PORTS = _ports((f"patches: {_PATCHES}", f"globals: {_GLOBALS}", f"tower: {_TOWER}"))
BATCH_PORTS = _ports(("has_image: batch", "text_row: batch", "prompt: batch token decoder_hidden", "prompt_mask: batch token"))


@dataclass(frozen=True)
class Wire:
    """A producer's port, written `node.port`."""

    node: str
    port: str

    def __str__(self) -> str:
        return f"{self.node}.{self.port}"


Inputs = Mapping[str, tuple[Wire, ...]]
Wires = Mapping[str, Inputs]  # of each node, by input port
Layers = Mapping[str, tuple[int, ...]]


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
    wires: Wires
    contexts: Mapping[str, BuildContext]
    sizes: Mapping[tuple[str, str], Sizes]
    layers: Layers

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
    nodes: Mapping[str, Node], towers: Mapping[str, VisionSpec], decoder: DecoderSpec, unsure: Set[str] = frozenset()
) -> tuple[Graph | None, list[Fault]]:
    """Wire the nodes and resolve every axis size.

    Args:
        nodes, towers, decoder: the components by name, sizes of the vision encoders by name and of the decoder.
        unsure: nodes and towers whose settings are not known to be right; their wires are checked, sizes behind them are not.

    Returns: the graph and no faults, or None and everything that is wrong.
    """
    checker = _Checker(nodes, towers, decoder, unsure)
    graph = checker.run()
    return (None, checker.faults) if checker.faults else (graph, [])


class _Checker:
    """One check of a graph; `run` goes through it step by step, and `faults` gains what each step finds."""

    def __init__(self, nodes: Mapping[str, Node], towers: Mapping[str, VisionSpec], decoder: DecoderSpec, unsure: Set[str]) -> None:
        self.nodes, self.towers, self.decoder, self.unsure = nodes, towers, decoder, unsure
        self.faults: list[Fault] = []
        self.ports: dict[Wire, Port] = {Wire(BATCH, name): port for name, port in BATCH_PORTS.items()}
        for tower in towers:
            self.ports |= {Wire(tower, name): port for name, port in TOWER_PORTS.items()}
        for name, node in nodes.items():
            self.ports |= {Wire(name, output): port for output, port in node.gives.items()}
        hidden = {"decoder_hidden": decoder.hidden_size}
        self.sizes: dict[tuple[str, str], Sizes] = {
            (BATCH, name): {axis: hidden.get(axis) for axis in port.axes} for name, port in BATCH_PORTS.items()
        }
        self.encoders: dict[str, frozenset[str]] = {}

    def fault(self, path: str, message: str) -> None:
        self.faults.append(Fault(path, message))

    def port_fault(self, node: Node, port: str, message: str) -> None:
        self.fault(f"graph.{node.name}.inputs.{port}", message)

    def run(self) -> Graph | None:
        """The graph, or None where there are faults."""
        self._refuse_reserved_names()
        if self.faults:
            return None
        wires = self._wire()
        order = self._order(wires)
        if order is None or self.faults:
            return None
        layers = self._layers(wires)
        self._size_towers(layers)
        contexts = self._contexts(order, wires, layers)
        self._refuse_unread(wires)
        return None if self.faults else Graph(self.nodes, order, wires, contexts, self.sizes, layers)

    def _refuse_reserved_names(self) -> None:
        for name in filter({*self.towers, BATCH, DECODER}.__contains__, self.nodes):
            self.fault(f"graph.{name}", f"'{name}' is the name of a source already; rename the node")

    def _wire(self) -> Wires:
        """Every node's wires: the written ones and single ones first, then what ports of many wires find."""
        wires: dict[str, dict[str, tuple[Wire, ...]]] = {name: {} for name in self.nodes}
        gathering = []
        for name, node in self.nodes.items():
            for given in node.inputs:
                if given not in node.takes:
                    hint, known = did_you_mean(given, node.takes), listing(node.takes)
                    self.port_fault(node, given, f"no input port is named '{given}'{hint} Ports: {known}")
            for port in node.takes.values():
                if port.name in node.inputs:
                    wires[name][port.name] = self._written(node, port)
                elif port.many:
                    gathering.append((node, port))
                else:
                    wires[name][port.name] = self._found(node, port)
        for node, port in gathering:
            wires[node.name][port.name] = self._gathered(node, port, wires)
        return {name: {port: wires[name][port] for port in node.takes if wires[name][port]} for name, node in self.nodes.items()}

    def _written(self, node: Node, port: Port) -> tuple[Wire, ...]:
        """The wires that the recipe spells out for a port."""
        given = node.inputs[port.name]
        if len(given) != 1 and not port.many:
            self.port_fault(node, port.name, f"takes one wire, {len(given)} were given: {', '.join(given)}")
            return ()
        return tuple(wire for text in given if (wire := self._read(node, port, text)) is not None)

    def _read(self, node: Node, port: Port, text: str) -> Wire | None:
        """The wire written as `node` or `node.port`; None, and a fault, where there is no such output or it does not fit."""
        producer, dot, output = text.partition(".")
        wire = Wire(producer, output if dot else port.name)
        producers = {known.node for known in self.ports}
        if wire.node not in producers:
            hint, known = did_you_mean(wire.node, producers), listing(producers)
            self.port_fault(node, port.name, f"no node or encoder is named '{wire.node}'{hint} Known: {known}")
            return None
        if wire not in self.ports:
            outputs = [known.port for known in self.ports if known.node == wire.node]
            hint, gives = did_you_mean(wire.port, outputs), listing(outputs)
            self.port_fault(node, port.name, f"'{wire.node}' has no output port '{wire.port}'{hint} It gives: {gives}")
            return None
        if self.ports[wire].axes != port.axes:
            fits = listing(map(str, self._of_shape(node, port)))
            given = f"[{' '.join(self.ports[wire].axes)}]"
            self.port_fault(node, port.name, f"{wire} gives {given}, which does not fit {port}; what fits: {fits}")
            return None
        return wire

    def _found(self, node: Node, port: Port) -> tuple[Wire, ...]:
        """The one output of the port's name and shape."""
        fits = self._fitting(node, port)
        if len(fits) == 1:
            return tuple(fits)
        if len(fits) > 1:
            several = f"several nodes give {port}: {', '.join(map(str, fits))}; write one under `inputs:`"
            self.port_fault(node, port.name, several)
        elif not port.optional:
            self._nothing_gives(node, port)
        return ()

    def _gathered(self, node: Node, port: Port, wires: Wires) -> tuple[Wire, ...]:
        """All that gives what a port of many wires takes, but for nodes that read from this one themselves."""
        readers = _readers(node.name, wires)
        fits = [wire for wire in self._fitting(node, port) if wire.node not in readers]
        if not fits:
            self._nothing_gives(node, port)
        return tuple(fits)

    def _of_shape(self, node: Node, port: Port) -> list[Wire]:
        """Other nodes' outputs with a port's axes."""
        return [wire for wire, known in self.ports.items() if known.axes == port.axes and wire.node != node.name]

    def _fitting(self, node: Node, port: Port) -> list[Wire]:
        return [wire for wire in self._of_shape(node, port) if wire.port == port.name]

    def _nothing_gives(self, node: Node, port: Port) -> None:
        others = ", ".join(map(str, self._of_shape(node, port)))
        hint = f"; of that shape there is {others}" if others else ""
        last = ""
        for wire, known in self.ports.items():
            if wire.port == port.name and wire.node != node.name:
                strange = [axis for axis in port.axes if axis not in known.axes]
                lacks = f" has no axis '{strange[0]}'{did_you_mean(strange[0], known.axes)} It" if strange else ""
                last = f"; {wire}{lacks} is {known}"
        nothing = f"nothing gives {port}{hint}; add a node that does, or write the wire under `inputs:`{last}"
        self.port_fault(node, port.name, nothing)

    def _order(self, wires: Wires) -> tuple[str, ...] | None:
        """The nodes in an order in which each runs after those it reads from; None, and a fault, for a circle."""
        sources = {name: {wire.node for found in ports.values() for wire in found} for name, ports in wires.items()}
        waiting = {name: nodes & self.nodes.keys() for name, nodes in sources.items()}
        order: list[str] = []
        while ready := [name for name, needs in waiting.items() if not needs - set(order)]:
            order += ready
            waiting = {name: needs for name, needs in waiting.items() if name not in ready}
        if not waiting:
            return tuple(order)
        circle = " <- ".join(_cycle(waiting))
        self.fault("graph", f"nodes read from each other in a circle: {circle}; cut one of these wires")
        return None

    def _layers(self, wires: Wires) -> dict[str, tuple[int, ...]]:
        """Vision layers read of each tower: what its readers ask for, or all where none has a say."""
        read: dict[str, set[int]] = {tower: set() for tower in self.towers}
        for name, node in self.nodes.items():
            for tower in self._towers_of(wires[name]):
                asked = None
                try:
                    with plugin_code(node.config):
                        asked = node.config.vision_layers(self.towers[tower].num_layers)
                except PluginError as error:
                    self.fault(f"graph.{name}", str(error))
                except (ZeroDivisionError, ValueError):
                    pass
                read[tower] |= {layer for layer in asked or () if 0 <= layer < self.towers[tower].num_layers}
        return {tower: tuple(sorted(found)) or tuple(range(self.towers[tower].num_layers)) for tower, found in read.items()}

    def _size_towers(self, layers: Layers) -> None:
        for tower, spec in self.towers.items():
            sizes = {"layer": len(layers[tower]), "patch": spec.num_patches, "vision_hidden": spec.hidden_size}
            self.sizes |= {(tower, port): {"batch": None, **sizes} for port in TOWER_PORTS}

    def _contexts(self, order: tuple[str, ...], wires: Wires, layers: Layers) -> dict[str, BuildContext]:
        """What each node learns from its wires; nothing for nodes behind one that failed or is not known to be right."""
        contexts = {}
        failed = set(self.nodes) if DECODER in self.unsure else set(self.unsure)
        for name in order:
            sources = [wire for found in wires[name].values() for wire in found]
            self.encoders[name] = frozenset().union(*map(self._behind, sources))
            sound = name not in failed and not any(wire.node in failed for wire in sources)
            context = self._resolve(self.nodes[name], wires[name], layers) if sound else None
            if context is None:
                failed.add(name)
            else:
                contexts[name] = context
        return contexts

    def _behind(self, wire: Wire) -> frozenset[str]:
        """The encoders a wire carries something of."""
        return frozenset({wire.node}) if wire.node in self.towers else self.encoders.get(wire.node, frozenset())

    def _towers_of(self, ports: Inputs) -> list[str]:
        return sorted({wire.node for wires in ports.values() for wire in wires if wire.node in self.towers})

    def _resolve(self, node: Node, ports: Inputs, layers: Layers) -> BuildContext | None:
        """A node's context, with the sizes of its outputs noted in `sizes`; None, and a fault, where something disagrees."""
        axes = self._axes(node, ports)
        if axes is None:
            return None
        hidden, width = self.decoder.hidden_size, self.decoder.embedding_size
        if width != hidden and (node.config.attaches == "input" or any(wire.port == "prompt" for wire, *_ in ports.values())):
            self.fault(
                f"graph.{node.name}", f"this decoder embeds words in {width} numbers, its layers' states in {hidden}; use another"
            )
            return None
        towers = self._towers_of(ports) or sorted(self.encoders[node.name])
        tower = towers[0] if len(towers) == 1 else None
        context = BuildContext(
            axes=axes,
            decoder=self.decoder,
            wires={name: tuple(self.sizes[wire.node, wire.port] for wire in found) for name, found in ports.items()},
            vision=self.towers[tower] if tower else None,
            layers=layers[tower] if tower else (),
            encoders={name: tuple(tuple(sorted(self._behind(one))) for one in found) for name, found in ports.items()},
        )
        try:
            with plugin_code(node.config):
                added = node.config.resolve(context)
        except (ConfigMismatchError, PluginError) as error:
            field = getattr(error, "field", "")
            self.fault(f"graph.{node.name}" + (f".{field}" if field else ""), str(error))
            return None
        axes |= added
        named = {axis for port in node.gives.values() for axis in port.axes}
        unnamed = {axis: size for axis, size in added.items() if axis not in named}  # these travel with every port
        for name, port in node.gives.items():
            self.sizes[node.name, name] = {axis: axes.get(axis) for axis in port.axes} | unnamed
        return context

    def _axes(self, node: Node, ports: Inputs) -> dict[str, int | None] | None:
        """The axis sizes that a node's single wires agree on; None, and a fault, where two disagree."""
        layers, hidden = self.decoder.num_layers, self.decoder.hidden_size
        axes: dict[str, int | None] = {"decoder_layer": layers, "decoder_hidden": hidden}
        origin = dict.fromkeys(axes, DECODER)
        for name, (wire, *_) in ports.items():
            for axis, size in () if node.takes[name].many else self.sizes[wire.node, wire.port].items():
                if (known := axes.get(axis)) is None:
                    axes[axis], origin[axis] = size, str(wire)
                elif size is not None and known != size:
                    agree = f"axis '{axis}' is {size} from {wire} but {known} from {origin[axis]}; they must agree"
                    self.port_fault(node, name, agree)
                    return None
        return axes

    def _refuse_unread(self, wires: Wires) -> None:
        read = {wire.node for ports in wires.values() for found in ports.values() for wire in found}
        for name, node in self.nodes.items():
            if not node.config.attaches and not node.gives:
                self.fault(f"graph.{name}", "neither `gives` nor `attaches`; its class must say one of them")
            elif not node.config.attaches and name not in read:
                self.fault(f"graph.{name}", "nothing reads its outputs; remove the node, or wire it to one that does")


def _readers(name: str, wires: Wires) -> set[str]:
    """All nodes that read from a node, through any number of wires."""
    sources = {reader: {wire.node for some in ports.values() for wire in some} for reader, ports in wires.items()}
    found = {name}
    while fresh := {reader for reader, read in sources.items() if read & found} - found:
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
