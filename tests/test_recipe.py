"""Recipes: parents, overrides, defaults, and reading back what was resolved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers import LLAMA, raw_recipe, tiny_decoder, tiny_recipe, tiny_vision

import dehvf_kit
from dehvf_kit.adapter.checkpoint import adapter_recipe
from dehvf_kit.backbones.decoder import HfDecoderConfig
from dehvf_kit.backbones.vision.config import HfVisionConfig
from dehvf_kit.errors import RecipeError
from dehvf_kit.recipe.files import merge
from dehvf_kit.recipe.graph import Port

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_checks_and_reads_back_as_itself(path):
    """`resolved()` fills in every default; parsing it, or an adapter's copy of it, gives the same recipe."""
    recipe = dehvf_kit.load_recipe(path)
    graph = recipe.check()
    resolved = recipe.resolved()
    assert dehvf_kit.parse_recipe(resolved, recipe.source) == recipe
    assert dehvf_kit.parse_recipe(resolved).resolved() == resolved
    copied = adapter_recipe({"recipe": json.loads(json.dumps(resolved))}, Path("adapter"))
    assert copied.resolved() == resolved and copied.check().order == graph.order
    assert recipe.name == path.stem and recipe.description


def test_values_away_from_their_defaults_survive_the_way_there_and_back():
    recipe = tiny_recipe(
        decoder={"dtype": "bfloat16", "revision": "main"},
        training={"betas": [0.8, 0.9], "max_steps": 7, "precision": "bfloat16"},
        generation={"num_beams": 3},
        data={"type": "jsonl", "train": "a.jsonl", "prompt": {"question": "{question}", "chat": True}},
        published={"parameters": "1M"},
        graph={"injector": {"visual_in": ["key"]}, "fuser": {"inputs": {"queries": "layer_query.queries"}}},
    )
    assert dehvf_kit.parse_recipe(recipe.resolved(), recipe.source) == recipe
    assert recipe.resolved()["graph"]["fuser"]["inputs"] == {"queries": ["layer_query.queries"]}


MERGES = {
    "values replace, mappings merge": ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3, "z": 4}}, {"a": {"x": 1, "y": 3, "z": 4}}),
    "lists replace": ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    "null removes": ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
    "null removes what is nested": ({"a": {"x": 1, "y": {"z": 1}}}, {"a": {"x": None, "y": {"z": None}}}, {"a": {"y": {}}}),
    "null of nothing is nothing": ({"a": 1}, {"b": None, "c": {"d": None}}, {"a": 1, "c": {"d": None}}),
    "a new type starts afresh": (
        {"graph": {"fuser": {"type": "cross_attention", "num_heads": 2, "inputs": {"x": "y"}}}},
        {"graph": {"fuser": {"type": "mean"}}},
        {"graph": {"fuser": {"type": "mean"}}},
    ),
    "and a null over what is gone already is nothing": (
        {"graph": {"fuser": {"type": "cross_attention", "num_heads": 2}}},
        {"graph": {"fuser": {"type": "mean", "num_heads": None}}},
        {"graph": {"fuser": {"type": "mean"}}},
    ),
    "but a node keeps its role": (
        {"graph": {"first": {"role": "grouper", "type": "contiguous", "num_groups": 2}}},
        {"graph": {"first": {"type": "listed", "groups": [[0]]}}},
        {"graph": {"first": {"role": "grouper", "type": "listed", "groups": [[0]]}}},
    ),
    "the same type merges": (
        {"graph": {"fuser": {"type": "mean", "x": 1}}},
        {"graph": {"fuser": {"type": "mean", "y": 2}}},
        {"graph": {"fuser": {"type": "mean", "x": 1, "y": 2}}},
    ),
    "wires and configs are replaced whole": (
        {"graph": {"fuser": {"inputs": {"a": "b"}}}, "decoder": {"config": {"hidden_size": 1}}},
        {"graph": {"fuser": {"inputs": {"c": "d"}}}, "decoder": {"config": {"model_type": "x"}}},
        {"graph": {"fuser": {"inputs": {"c": "d"}}}, "decoder": {"config": {"model_type": "x"}}},
    ),
    "a node is removed": ({"graph": {"a": {}, "b": {}}}, {"graph": {"a": None}}, {"graph": {"b": {}}}),
    "from one encoder to two": (
        {"vision": {"model": "m", "image": {"size": 3}}},
        {"vision": {"one": {"model": "a"}, "two": {"model": "b"}}},
        {"vision": {"one": {"model": "a"}, "two": {"model": "b"}}},
    ),
    "from two encoders to one": (
        {"vision": {"one": {"model": "a"}, "two": {"model": "b"}}},
        {"vision": {"model": "m"}},
        {"vision": {"model": "m"}},
    ),
    "an encoder among several": (
        {"vision": {"one": {"model": "a", "dtype": "auto"}, "two": {"model": "b"}}},
        {"vision": {"one": {"model": "c"}}},
        {"vision": {"one": {"model": "c", "dtype": "auto"}, "two": {"model": "b"}}},
    ),
    "the image of one encoder": (
        {"vision": {"model": "m", "image": {"size": 3, "resize": "crop"}}},
        {"vision": {"image": {"size": 4}}},
        {"vision": {"model": "m", "image": {"size": 4, "resize": "crop"}}},
    ),
}


@pytest.mark.parametrize("case", MERGES)
def test_a_child_over_its_parent(case):
    parent, child, expected = MERGES[case]
    before = str((parent, child))
    found = merge(parent, child)
    assert found == expected
    found.setdefault("graph", {})["touched"] = 1
    for value in found.values():
        if isinstance(value, dict):
            value["touched"] = 1
    assert str((parent, child)) == before, "neither parent nor child is changed"


def test_parents_are_found_beside_their_child(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(raw_recipe()))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "child.yaml").write_text("extends: ../base.yaml\nname: child\ngraph: {position: {num_slots: 30}}\n")
    (tmp_path / "below" / "grandchild.yaml").write_text("extends: child.yaml\nvision_x: 1\n")
    recipe = dehvf_kit.load_recipe(tmp_path / "below" / "child.yaml")
    assert recipe.name == "child" and recipe.nodes["position"].config.num_slots == 30
    with pytest.raises(RecipeError, match=r"grandchild\.yaml: vision_x: unknown section"):
        dehvf_kit.load_recipe(tmp_path / "below" / "grandchild.yaml")


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw_recipe(data={"type": "jsonl"}), sort_keys=False))
    return tmp_path / "tiny.yaml"


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("training.batch_size=8", lambda r: r.training.batch_size, 8),
        ("training.base_learning_rate=1e-3", lambda r: r.training.base_learning_rate, 1e-3),
        ("training.gradient_checkpointing=true", lambda r: r.training.gradient_checkpointing, True),
        ("training.betas=[0.5, 0.6]", lambda r: r.training.betas, (0.5, 0.6)),
        ("training={seed: 4}", lambda r: r.training.seed, 4),
        ("name=a=b", lambda r: r.name, "a=b"),
        ("description=", lambda r: r.description, ""),
        (" training.seed =5", lambda r: r.training.seed, 5),
        ("data.train=x.jsonl", lambda r: r.data.train, Path("x.jsonl")),
        ("data=null", lambda r: r.data, None),
        ("published.parameters=4M", lambda r: r.published.parameters, "4M"),
        ("graph.fuser.num_heads=4", lambda r: r.nodes["fuser"].config.num_heads, 4),
        ("graph.fuser={type: mean}", lambda r: r.nodes["fuser"].config.type, "mean"),
        ("graph.vision_adapter=null", lambda r: "vision_adapter" in r.nodes, False),
        ("graph.injector.visual_in=[value]", lambda r: r.nodes["injector"].config.visual_in, ("value",)),
        ("graph.position.num_slots=null", lambda r: r.nodes["position"].config.num_slots, 320),
        ("vision.image.size=24", lambda r: r.vision["vision"].image.size, 24),
        ("generation.num_beams=2", lambda r: r.generation.num_beams, 2),
    ],
)
def test_override(recipe_file, override, read, expected):
    extra = ["graph.layer_query=null"] if "type: mean" in override else []
    assert read(dehvf_kit.load_recipe(recipe_file, [override, *extra])) == expected


@pytest.mark.parametrize("override", ["vision.nonsense=null", "graph.fuser.num_heds=null", "data.prompt.chad=null", "traning=null"])
def test_a_null_over_no_field_is_refused(recipe_file, override):
    more = ["data={type: jsonl, train: a.jsonl, prompt: {chat: true}}"]
    key = override.removesuffix("=null")
    with pytest.raises(RecipeError, match=rf"{key}: null removes a field, but none is named so.* Fields: "):
        dehvf_kit.load_recipe(recipe_file, [*more, override])


def test_a_null_over_a_field_at_its_default_is_nothing(recipe_file):
    overrides = ["vision.dtype=null", "graph.fuser.inputs=null", "vision.revision=null", "published=null"]
    assert dehvf_kit.load_recipe(recipe_file, overrides) == dehvf_kit.load_recipe(recipe_file)


def test_a_null_in_a_file_is_refused_too(recipe_file):
    child = recipe_file.with_name("child.yaml")
    child.write_text(f"extends: {recipe_file.name}\ndecoder: {{revison: null}}\n")
    with pytest.raises(RecipeError, match=r"decoder\.revison: null removes a field.*did you mean 'revision'"):
        dehvf_kit.load_recipe(child)


def test_later_overrides_win_and_one_text_is_one_override(recipe_file):
    assert dehvf_kit.load_recipe(recipe_file, ["training.seed=1", "training.seed=2"]).training.seed == 2
    assert dehvf_kit.load_recipe(recipe_file, "training.seed=3").training.seed == 3


def test_a_null_section_can_be_filled_from_the_command_line(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**raw_recipe(), "data": None}))
    assert dehvf_kit.load_recipe(file).data is None
    assert dehvf_kit.load_recipe(file, ["data.type=jsonl"]).data.type == "jsonl"


def test_the_name_defaults_to_the_files(tmp_path):
    raw = raw_recipe()
    del raw["name"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    assert dehvf_kit.load_recipe(tmp_path / "mine.yaml").name == "mine"


def test_a_recipe_without_configs_at_hand_loads_and_says_so_when_checked():
    raw = raw_recipe()
    raw["decoder"] = {"model": "nobody/nothing"}
    recipe = dehvf_kit.parse_recipe(raw)
    with pytest.raises(RecipeError, match="decoder: no config of 'nobody/nothing' on this machine; give a local folder"):
        recipe.check()


def test_what_is_built_must_fit_the_modules_handed_over():
    recipe = tiny_recipe(graph={"grouper": {"num_groups": 3}})
    with pytest.raises(RecipeError, match=r"graph\.grouper\.num_groups: 3 groups for 2 decoder layers; use at most 2"):
        dehvf_kit.build(recipe, decoder=tiny_decoder(num_hidden_layers=2), vision=tiny_vision())


def test_a_config_in_a_local_folder_that_is_garbage(tmp_path):
    (tmp_path / "model").mkdir()
    raw = raw_recipe()
    for text in ("[]", "{}", '{"model_type": "nothing_known"}', "{half", '{"model_type": "llama", "hidden_size": "x"}'):
        (tmp_path / "model" / "config.json").write_text(text)
        raw["decoder"] = {"model": str(tmp_path / "model")}
        with pytest.raises(RecipeError, match="decoder"):
            dehvf_kit.parse_recipe(raw).check()


def test_the_decoders_config_decides_its_sizes():
    recipe = tiny_recipe(decoder={"config": {"model_type": "llama", **LLAMA, "hidden_size": 64}})
    assert recipe.check().contexts["position"].decoder.hidden_size == 64


def test_a_recipe_reads_its_towers_and_ports_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for config in (HfVisionConfig, HfDecoderConfig):
        spec = config.spec
        monkeypatch.setattr(config, "spec", lambda self, sources, spec=spec: read.append(self.role) or spec(self, sources))
    recipe = dehvf_kit.load_recipe("recipes/llama7b_clip.yaml")
    assert sorted(read) == ["decoder", "vision"]
    monkeypatch.setattr(Port, "parse", lambda text: pytest.fail(f"parsed again: {text}"))
    assert recipe.check() is recipe.check()
    recipe.vision_specs([]), recipe.decoder_spec([])
    assert sorted(read) == ["decoder", "vision"]
    changed = replace(recipe, decoder=recipe.decoder.model_copy(update={"config": {"model_type": "no such type"}}))
    with pytest.raises(RecipeError, match="no such type"):
        changed.check()
