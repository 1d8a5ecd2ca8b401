"""Ports, wiring, sizes, order: the graph alone, with components that exist only here."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dehvf_kit.api.config import ComponentConfig, ConfigMismatchError
from dehvf_kit.api.shapes import DecoderSpec, VisionSpec
from dehvf_kit.recipe.graph import Graph, Node, Port, Wire, check_graph

DECODER = DecoderSpec(hidden_size=32, num_layers=4)
TOWERS = {"vision": VisionSpec(hidden_size=24, num_layers=8, num_patches=16)}


def node(name: str, takes: tuple = (), gives: tuple = (), inputs: dict | None = None, attaches: str = "", **more: Any) -> Node:
    """A component with these ports; `more` are attributes of its config class."""
    fields = {"takes": takes, "gives": gives, "attaches": attaches, **more}
    types = {"takes": ClassVar[tuple], "gives": ClassVar[tuple], "attaches": ClassVar[str]}
    config = type(name.title(), (ComponentConfig,), {**fields, "__annotations__": types, "__module__": __name__})
    wires = {port: (wire,) if isinstance(wire, str) else tuple(wire) for port, wire in (inputs or {}).items()}
    return Node(name, config(), wires)


def checked(*nodes: Node, towers: dict | None = None) -> tuple[Graph | None, list[str]]:
    graph, faults = check_graph({one.name: one for one in nodes}, TOWERS if towers is None else towers, DECODER)
    assert (graph is None) == bool(faults)
    return graph, [str(fault) for fault in faults]


SINK = ("patches: batch layer patch vision_hidden",)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("codes: batch layer", Port("codes", ("batch", "layer"))),
        ("codes?: batch", Port("codes", ("batch",), optional=True)),
        ("codes*: batch", Port("codes", ("batch",), many=True)),
        ("scalar:", Port("scalar", ())),
    ],
)
def test_port_text(text, port):
    assert Port.parse(text) == port


def test_wires_are_found_by_name_and_axes_and_written_ones_win():
    graph, _ = checked(
        node("b", ("x: batch",), attaches="decoder"),
        node("c", ("x: batch",), attaches="decoder", inputs={"x": "a.y"}),
        node("a", (), ("x: batch", "y: batch")),
    )
    assert graph.order.index("a") == 0
    assert graph.wires["b"] == {"x": (Wire("a", "x"),)} and graph.wires["c"] == {"x": (Wire("a", "y"),)}
    assert [(str(wire), name, port) for wire, name, port in graph.edges()] == [("a.x", "b", "x"), ("a.y", "c", "x")]


def test_the_same_name_with_other_axes_is_another_thing():
    graph, faults = checked(node("a", (), ("x: batch layer",)), node("b", ("x: batch",), attaches="decoder"))
    assert faults == [
        "graph.b.inputs.x: nothing gives x [batch]; of that shape there is batch.has_image, batch.text_row; add a node "
        "that does, or write the wire under `inputs:`; a.x is x [batch layer]"
    ]


def test_optional_ports_may_stay_open_but_not_be_ambiguous():
    graph, _ = checked(node("b", ("x?: batch",), attaches="decoder"))
    assert graph.wires["b"] == {}
    _, faults = checked(node("a", (), ("x: batch",)), node("c", (), ("x: batch",)), node("b", ("x?: batch",), attaches="decoder"))
    assert faults[0] == "graph.b.inputs.x: several nodes give x [batch]: a.x, c.x; write one under `inputs:`"


def test_a_port_of_many_wires_gathers_all_givers():
    graph, _ = checked(node("a", (), ("x: batch",)), node("c", (), ("x: batch",)), node("b", ("x*: batch",), attaches="decoder"))
    assert graph.wires["b"]["x"] == (Wire("a", "x"), Wire("c", "x"))


def test_gathering_leaves_out_what_reads_from_the_gatherer():
    """`again` reads `all` by a wire that was found, not written, and gives what `all` gathers: no circle."""
    graph, faults = checked(
        node("first", (), ("x: batch",)),
        node("all", ("x*: batch",), ("y: batch",)),
        node("again", ("y: batch",), ("x: batch", "z: batch")),
        node("end", ("z: batch",), attaches="decoder"),
    )
    assert faults == []
    assert graph.wires["all"]["x"] == (Wire("first", "x"),)
    assert graph.order == ("first", "all", "again", "end")


def test_a_written_circle_is_named():
    _, faults = checked(
        node("a", ("x: batch",), ("y: batch",), inputs={"x": "c.x"}),
        node("b", ("y: batch",), ("z: batch",)),
        node("c", ("z: batch",), ("x: batch",)),
    )
    assert faults == ["graph: nodes read from each other in a circle: a <- c <- b <- a; cut one of these wires"]
    _, faults = checked(node("a", ("x: batch",), ("x: batch",), inputs={"x": "a"}))
    assert faults == ["graph: nodes read from each other in a circle: a <- a; cut one of these wires"]


def test_sizes_travel_along_wires():
    class Halves(ComponentConfig):
        takes: ClassVar[tuple[str, ...]] = SINK
        gives: ClassVar[tuple[str, ...]] = ("codes: batch layer patch code",)

        def resolve(self, context):
            return {"code": context.size("vision_hidden") // 2}

    seen = {}

    class Reads(ComponentConfig):
        takes: ClassVar[tuple[str, ...]] = ("codes: batch layer patch code",)
        attaches: ClassVar[str] = "decoder"

        def resolve(self, context):
            seen.update(context.axes)
            return {}

    graph, _ = check_graph({"h": Node("h", Halves()), "r": Node("r", Reads())}, TOWERS, DECODER)
    assert seen == {"decoder_layer": 4, "decoder_hidden": 32, "batch": None, "layer": 8, "patch": 16, "code": 12}
    assert graph.shape(Wire("h", "codes"), ("batch", "layer", "patch", "code")) == "batch layer=8 patch=16 code=12"
    assert graph.contexts["r"].vision == TOWERS["vision"] and graph.contexts["r"].encoders == {"codes": (("vision",),)}


def test_a_misfit_is_reported_with_its_field_and_stops_what_reads_it():
    class Refuses(ComponentConfig):
        takes: ClassVar[tuple[str, ...]] = SINK
        gives: ClassVar[tuple[str, ...]] = ("x: batch",)

        def resolve(self, context):
            raise ConfigMismatchError("does not fit", "width")

    class Unreached(ComponentConfig):
        takes: ClassVar[tuple[str, ...]] = ("x: batch",)
        attaches: ClassVar[str] = "decoder"

        def resolve(self, context):
            raise AssertionError("its inputs have no sizes")

    _, faults = check_graph({"a": Node("a", Refuses()), "b": Node("b", Unreached())}, TOWERS, DECODER)
    assert [str(fault) for fault in faults] == ["graph.a.width: does not fit"]


def test_an_unknown_size_is_a_misfit_when_it_is_needed():
    class Needs(ComponentConfig):
        takes: ClassVar[tuple[str, ...]] = SINK
        attaches: ClassVar[str] = "decoder"

        def resolve(self, context):
            return {"x": context.size("patch")}

    towers = {"vision": VisionSpec(hidden_size=24, num_layers=8, num_patches=None)}
    _, faults = check_graph({"a": Node("a", Needs())}, towers, DECODER)
    assert str(faults[0]) == "graph.a: needs the size of axis 'patch', which is not known before an image is seen"


def test_layers_read_are_the_union_of_what_readers_ask_for():
    def asks(*layers: int):
        return lambda self, num_layers: tuple(layers)

    reads = "globals: batch layer vision_hidden"
    graph, _ = checked(
        node("a", (reads,), attaches="decoder", vision_layers=asks(3, 1)),
        node("b", (reads,), attaches="decoder", vision_layers=asks(6)),
        node("c", SINK, attaches="decoder"),
    )
    assert graph.layers == {"vision": (1, 3, 6)}
    assert graph.sizes["vision", "patches"]["layer"] == 3
    graph, _ = checked(node("c", SINK, attaches="decoder"))
    assert graph.layers == {"vision": tuple(range(8))}, "all, where nobody has a say"


def test_unsure_nodes_are_wired_but_not_resolved():
    class Explodes(ComponentConfig):
        takes: ClassVar[tuple[str, ...]] = SINK
        attaches: ClassVar[str] = "decoder"

        def resolve(self, context):
            raise AssertionError("its settings are not known to be right")

    nodes = {"a": Node("a", Explodes()), "b": node("b", ("nothing: batch",), attaches="decoder")}
    for unsure in ({"a"}, {"vision"}, {"decoder"}):
        _, faults = check_graph(nodes, TOWERS, DECODER, unsure)
        assert [fault.path for fault in faults] == ["graph.b.inputs.nothing"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=8))
def test_any_wiring_is_ordered_or_a_circle_that_is_one(reads):
    """Random wires between eight nodes: either producers come first, or the circle named really is one."""
    names = [f"n{index}" for index in range(len(reads))]
    nodes = [
        node(name, ("x*: layer",), ("x: layer",), inputs={"x": [names[i % len(names)] for i in picks]} if picks else {"x": "seed"})
        for name, picks in zip(names, reads, strict=True)
    ]
    graph, faults = checked(node("seed", (), ("x: layer",)), *nodes, node("end", ("x*: layer",), attaches="decoder"))
    wires = {name: {names[i % len(names)] for i in picks} for name, picks in zip(names, reads, strict=True)}
    if graph is None:
        (fault,) = faults
        circle = fault.split("circle: ")[1].split(";")[0].split(" <- ")
        assert circle[0] == circle[-1]
        assert all(later in wires[earlier] for earlier, later in zip(circle, circle[1:], strict=False))
    else:
        for name, producers in wires.items():
            assert all(graph.order.index(producer) < graph.order.index(name) for producer in producers)


def test_a_deep_lattice_is_checked_at_once():
    """Every node reads the two before it: paths double at each step, the work does not."""
    nodes = [node("n0", SINK, ("x: layer",)), node("n1", ("x: layer",), ("x: layer",), inputs={"x": "n0"})]
    for index in range(2, 80):
        nodes.append(node(f"n{index}", ("x*: layer",), ("x: layer",), inputs={"x": [f"n{index - 1}", f"n{index - 2}"]}))
    graph, faults = checked(*nodes, node("end", ("x: layer",), attaches="decoder", inputs={"x": "n79"}))
    assert faults == [] and graph.contexts["end"].encoders == {"x": (("vision",),)}


def test_nothing_here_imports_torch():
    code = "import sys, dehvf_kit.recipe.graph; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_axes_in_another_order_are_shown_and_a_node_must_give_or_attach():
    _, faults = checked(node("a", (), ("x: batch layer code",)), node("b", ("x: batch code layer",), attaches="decoder"))
    assert faults[0].endswith("; a.x is x [batch layer code]")
    _, faults = checked(node("b", (), ()))
    assert faults == ["graph.b: neither `gives` nor `attaches`; its class must say one of them"]
