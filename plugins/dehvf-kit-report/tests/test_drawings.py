"""Every node, port, axis and wire of a graph is in each of its drawings."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from cli.commands import Command
from dehvf_kit_report.drawing.mermaid import mermaid
from dehvf_kit_report.drawing.svg import svg
from dehvf_kit_report.drawing.wiring import Drawing, draw_recipe

from dehvf_kit.recipe.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
NAMES = ["llama7b_clip.yaml", "two_encoders.yaml", "ablations/no_visual_prompts.yaml", "ablations/learned_tokens.yaml"]


@pytest.fixture(scope="module")
def drawings() -> dict[str, Drawing]:
    return {name: draw_recipe(load_recipe(RECIPES / name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_drawing_has_every_wire(drawings: dict[str, Drawing], name: str) -> None:
    drawing, graph = drawings[name], load_recipe(RECIPES / name).check()
    data = [edge for edge in drawing.edges if not edge.attaches]
    assert [(e.source, e.source_port, e.target, e.target_port) for e in data] == [
        (wire.node, wire.port, node, port) for wire, node, port in graph.edges()
    ]
    hooks = {(edge.source, edge.target) for edge in drawing.edges if edge.attaches}
    assert ("injector", "decoder") in hooks
    assert (("vision_adapter", "vision") in hooks) == ("vision_adapter" in graph.nodes)


def test_boxes_say_sizes_and_parameters(drawings: dict[str, Drawing]) -> None:
    drawing = drawings["llama7b_clip.yaml"]
    assert drawing.box("vision").repeated == 24 and drawing.box("decoder").repeated == 32
    (fused, *_) = drawing.box("fuser").gives
    assert fused.axes == ("batch", "decoder_layer=32", "kv=2", "patch=256", "code=128")
    assert drawing.box("projector").parameters == 659_584  # 1024 * 128 + 128 + 128 * 4096 + 4096
    loops = [edge for edge in drawing.edges if edge.loop]
    assert [(edge.source, edge.target) for edge in loops] == [("vision", "vision_adapter")]


@pytest.mark.parametrize("name", NAMES)
def test_svg_is_sound_and_self_contained(drawings: dict[str, Drawing], name: str) -> None:
    drawing = drawings[name]
    text = svg(drawing)
    root = ElementTree.fromstring(text)
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for box in drawing.boxes:
        assert box.name in words
        assert all(port.name in words and set(port.axes) <= set(words) for port in box.gives)
    wires = [node for node in root.iter("{http://www.w3.org/2000/svg}path") if node.get("class") in ("wire", "hook")]
    assert len(wires) == len(drawing.edges)
    assert text.count("http") == 1 and "<script" not in text  # the namespace alone


def test_labels_stay_inside_their_boxes(drawings: dict[str, Drawing]) -> None:
    """By a width of 0.62 of the font size a letter, which no proportional font exceeds on average."""
    root = ElementTree.fromstring(svg(drawings["two_encoders.yaml"]))
    width = float(root.get("width"))
    for node in root.iter("{http://www.w3.org/2000/svg}text"):
        half, x = 0.5 * 0.62 * float(node.get("font-size")) * len(node.text), float(node.get("x"))
        assert x - half > -20 and x + half < width + 20


@pytest.mark.parametrize("name", NAMES)
def test_mermaid_has_every_box_and_wire(drawings: dict[str, Drawing], name: str) -> None:
    text = mermaid(drawings[name])
    assert text.startswith("flowchart TB\n")
    assert all(f"<b>{box.name}</b>" in text for box in drawings[name].boxes)
    assert sum("-->|" in line or "-.->|" in line for line in text.splitlines()) == len(drawings[name].edges)


def test_the_command_draws_in_three_ways(command: Command, recipe: Path) -> None:
    ended = command("graph", recipe)
    assert ended.code == 0 and "injector" in ended.out and "codes <- projector.codes" in ended.out
    assert "decoder_layer=4" in ended.out and max(map(len, ended.out.splitlines())) <= 110
    for name, start in (("wiring.svg", "<svg "), ("wiring.mmd", "flowchart TB")):
        assert command("graph", recipe, "-o", name).out == f"graph: {name}\n"
        assert Path(name).read_text().startswith(start)
    assert command("graph", recipe, "--format", "mermaid").out == Path("wiring.mmd").read_text()
    facts = json.loads(command("graph", recipe, "--json").out)
    assert {box["name"] for box in facts["boxes"]} >= {"vision", "decoder", "fuser"} and facts["file"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--format", "png"], "--format png: one of terminal, mermaid, svg"), (["-o", "none/a.svg"], "none/a.svg: cannot be written"),
     (["graph.fuser.type=x"], "graph.fuser.type")],
)  # fmt: skip
def test_mistakes_are_told(command: Command, recipe: Path, words: list[str], says: str) -> None:
    ended = command("graph", recipe, *words)
    assert ended.code == 1 and says in ended.err and "Traceback" not in ended.err and ended.out == ""
