"""`build`: what it saves, what it prints, and what it refuses to overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from cli.commands import Command
from helpers import raw_recipe
from safetensors.torch import load_file, save_file

from dehvf_kit.model.builder import build_nodes
from dehvf_kit.recipe.recipe import load_recipe

WEIGHTS = "adapter_model.safetensors"


def test_json_is_one_object_with_the_counts(command: Command, recipe: Path) -> None:
    ended = command("build", recipe, "--json")
    found = json.loads(ended.out)
    nodes = build_nodes(load_recipe(recipe).check())
    count = sum(parameter.numel() for node in nodes.values() for parameter in node.parameters())
    assert ended.code == 0
    assert found["trainable_parameters"] == found["trainable_parameters_as_published"] == count
    assert found["trainable_parameters"] == sum(term["count"] for term in found["parameters"])
    assert (found["published"], found["matches_published"]) == (None, None)
    assert [node["node"] for node in found["graph"]] == list(nodes)
    assert found["graph"][-1]["inputs"]["fused"] == ["fuser.fused"]
    assert found["flops"]["samples"][0]["tokens"] == 64
    assert found["memory_bytes"]["adapter"] == 4 * count
    assert found["saved"] == "runs/tiny"


def test_the_adapter_is_saved_in_runs(command: Command, recipe: Path) -> None:
    command("build", recipe)
    folder = Path("runs/tiny")
    saved = load_file(folder / WEIGHTS)
    nodes = build_nodes(load_recipe(recipe).check())
    fresh = {f"{name}.{key}": value for name, node in nodes.items() for key, value in node.state_dict().items()}
    assert saved.keys() == fresh.keys()
    assert all(torch.equal(saved[name], fresh[name]) for name in saved)
    config = json.loads((folder / "dehvf_config.json").read_text())
    assert config["recipe"]["graph"]["fuser"]["type"] == "cross_attention"
    assert (folder / "README.md").is_file()


def test_no_save_writes_nothing(command: Command, recipe: Path) -> None:
    found = json.loads(command("build", recipe, "--no-save", "--json").out)
    assert found["saved"] is None
    assert not Path("runs").exists()


def test_building_again_is_no_fault_but_trained_weights_are_kept(command: Command, recipe: Path) -> None:
    assert command("build", recipe, "-o", "mine").code == 0
    assert command("build", recipe, "-o", "mine").code == 0
    weights = {name: tensor + 1 for name, tensor in load_file(f"mine/{WEIGHTS}").items()}
    save_file(weights, f"mine/{WEIGHTS}")
    ended = command("build", recipe, "-o", "mine", "--json")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].startswith("mine: holds an adapter with other weights")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(f"mine/{WEIGHTS}").items())
    assert command("build", recipe, "-o", "mine", "--overwrite").code == 0
    assert not all(torch.equal(tensor, weights[name]) for name, tensor in load_file(f"mine/{WEIGHTS}").items())


def test_the_folder_of_a_run_is_left_alone(command: Command, recipe: Path) -> None:
    assert command("build", recipe, "-o", "run/adapter").code == 0
    for more in ([], ["--overwrite"]):
        ended = command("build", recipe, "-o", "run", *more)
        assert ended.code == 1 and ended.err.splitlines()[-1].startswith("run: holds a run already; name another folder")
    assert [place.name for place in Path("run").iterdir()] == ["adapter"]


def test_overrides_change_what_is_built(command: Command, recipe: Path) -> None:
    before = json.loads(command("build", recipe, "--no-save", "--json").out)
    after = json.loads(command("build", recipe, "graph.position.num_slots=21", "--no-save", "--json").out)
    assert after["trainable_parameters"] - before["trainable_parameters"] == 2 * 32


def test_a_published_figure_is_compared(command: Command, recipe: Path) -> None:
    count = json.loads(command("build", recipe, "--no-save", "--json").out)["trainable_parameters"]
    published = f"{{parameters: '{count + 10}', unused_parameters: 10, source: Table 9}}"
    ended = command("build", recipe, f"published={published}", "--no-save", "--json")
    found = json.loads(ended.out)
    assert (found["trainable_parameters_as_published"], found["matches_published"]) == (count + 10, True)
    out = command("build", recipe, f"published={published}", "--no-save").out
    assert "equals the published one" in out and "Table 9" in out
    out = command("build", recipe, f"published={published}", "graph.position.num_slots=21", "--no-save").out
    assert "differs from the published one" in out


@pytest.mark.parametrize("width", ["60", "80", "140"])
def test_the_report_fits_its_width_and_needs_no_colour(
    command: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    out = command("build", recipe, "--no-save").out
    for heading in ("Base models", "Graph", "Trained parameters", "Forward FLOPs", "Memory"):
        assert f"\n{heading}" in out
    assert max(map(len, out.splitlines())) <= int(width)
    assert "\x1b" not in out and not any(line.endswith(" ") for line in out.splitlines())


def test_every_node_and_wire_is_printed(command: Command, recipe: Path) -> None:
    out = command("build", recipe, "--no-save").out
    graph = load_recipe(recipe).check()
    assert all(f"<- {wire}" in out for wire, _, _ in graph.edges())
    assert all(f"\n  {name}  " in out for name in graph.order)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", ""])
def test_a_name_that_is_no_folder_is_refused(command: Command, recipe: Path, name: str) -> None:
    ended = command("build", recipe, f"name='{name}'")
    assert ended.code == 1
    assert "cannot name a folder" in ended.err
    assert command("build", recipe, f"name='{name}'", "-o", "mine").code == 0


def test_a_recipe_without_configs_is_refused(command: Command, recipe: Path) -> None:
    ended = command("build", recipe, "vision.config=null", "vision.model=nobody/nothing")
    assert ended.code == 1
    assert "tiny.yaml: vision: no config of 'nobody/nothing'" in ended.err
    assert not Path("runs").exists()


MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "vocab_size": 99,
}


@pytest.mark.parametrize(("name", "more"), [("build", ("--no-save",)), ("check", ()), ("plan", ("--gpu", "h100-80gb"))])
def test_experts_that_quantising_leaves_in_float_are_named_and_counted(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(
        yaml.safe_dump(raw_recipe(decoder={"config": MIXTRAL, "dtype": "bfloat16", "quantization": "int4"}), sort_keys=False)
    )
    count = 2 * 4 * 3 * 32 * 48
    found = json.loads(command(name, "tiny.yaml", *more, "--json").out)
    notes = found["plans"][0]["notes"] if name == "plan" else found["notes"]
    assert any(f"{count:,} expert weights in float" in note and "model.layers.*.mlp.experts" in note for note in notes), found
    if name == "build":
        assert "expert weights in float" in command(name, "tiny.yaml", *more).err
