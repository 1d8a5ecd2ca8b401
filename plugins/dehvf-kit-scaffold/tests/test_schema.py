"""The JSON Schema of recipes is fresh, accepts every recipe of ours and refuses what `check` refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from dehvf_kit_scaffold import schema
from helpers import DINOV2, VIT, raw_recipe
from jsonschema import Draft202012Validator

from dehvf_kit.api.registry import IN_PLUGINS, Registry
from dehvf_kit.recipe.recipe import load_recipe, parse_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
DINO = {"config": {"model_type": "dinov2", **DINOV2}}
ENCODER = {"config": {"model_type": "clip_vision_model", **VIT}, "image": {"size": 32}}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads((RECIPES / "recipe.schema.json").read_text()))


def test_the_file_is_fresh() -> None:
    assert schema.FILE == RECIPES / "recipe.schema.json"
    assert schema.main(["--check"]) == 0


def test_it_is_a_schema(validator: Draft202012Validator) -> None:
    Draft202012Validator.check_schema(validator.schema)


def test_it_knows_the_built_ins_and_the_repositorys_data_sets_alone() -> None:
    known = schema.builtin_registry()
    assert {one for one, config in known.configs.items() if not config.__module__.startswith("dehvf_kit.")} == set(IN_PLUGINS)
    assert "easy_vqa" not in schema.schema_text(known)


def test_a_stale_or_missing_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.json"
    assert schema.main(["--check", "--output", str(file)]) == 1
    assert schema.main(["--output", str(file)]) == 0
    assert schema.main(["--check", "--output", str(file)]) == 0
    file.write_text("{}")
    assert schema.main(["--check", "--output", str(file)]) == 1
    assert "run python -m dehvf_kit_scaffold.schema" in capsys.readouterr().err


def test_one_with_the_installed_plugins_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    schema.main(["--installed", "--output", str(file)])
    assert "fuser.cross_attention" in json.loads(file.read_text())["$defs"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RECIPES)))
def test_every_recipe_validates(validator: Draft202012Validator, file: Path) -> None:
    assert [error.message for error in validator.iter_errors(yaml.safe_load(file.read_text()))] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RECIPES)))
def test_every_recipe_names_the_schema_for_editors(file: Path) -> None:
    above = "../" * (len(file.relative_to(RECIPES).parts) - 1)
    assert file.read_text().startswith(f"# yaml-language-server: $schema={above}recipe.schema.json\n")


@pytest.mark.parametrize("name", ["llama7b_clip.yaml", "two_encoders.yaml", "ablations/no_visual_prompts.yaml"])
def test_resolved_recipes_validate(validator: Draft202012Validator, name: str) -> None:
    assert validator.is_valid(load_recipe(RECIPES / name).resolved())


GOOD: dict[str, dict[str, Any]] = {
    "null sections": raw_recipe() | {"published": None, "data": None, "training": None},
    "a plugin's data set": raw_recipe() | {"data": {"type": "their_own", "anything": 1}},
    "jsonl": raw_recipe() | {"data": {"type": "jsonl", "train": "a.jsonl", "prompt": {"chat": True}}},
    "wires": raw_recipe(graph={"grouper": {"inputs": {"globals": "vision"}}, "projector": {"inputs": {"patches": ["vision"]}}}),
    "two encoders": raw_recipe() | {"vision": {"left": ENCODER, "right": DINO}},
    "a node of another name": raw_recipe(
        graph={"grouper": None, "mine": {"role": "grouper", "type": "contiguous", "num_groups": 2}}
    ),
    "a node named after another role": raw_recipe(
        graph={"grouper": None, "merger": {"role": "grouper", "type": "contiguous", "num_groups": 2}}
    ),
    "a child that names a field": {"extends": "p.yaml", "graph": {"fuser": {"num_blocks": 2}}},
    "a child that removes": {"extends": "p.yaml", "published": None, "graph": {"layer_query": None, "my_node": None}},
    "a child that resets a field": {
        "extends": "p.yaml",
        "graph": {"fuser": {"num_blocks": None}},
        "vision": {"image": {"size": None}},
    },
    "a child of nothing else": {"extends": "p.yaml"},
}


@pytest.mark.parametrize("recipe", GOOD.values(), ids=GOOD)
def test_what_is_right_validates(validator: Draft202012Validator, recipe: dict[str, Any]) -> None:
    assert [error.message for error in validator.iter_errors(recipe)] == []


FAULTY: dict[str, dict[str, Any]] = {
    "no decoder": {key: value for key, value in raw_recipe().items() if key != "decoder"},
    "no graph": {key: value for key, value in raw_recipe().items() if key != "graph"},
    "an empty graph": raw_recipe() | {"graph": {}},
    "an unknown section": raw_recipe() | {"traning": {}},
    "an unknown type": raw_recipe(graph={"fuser": {"type": "crossattention"}}),
    "no type": raw_recipe() | {"graph": {**raw_recipe()["graph"], "fuser": {"num_blocks": 2}}},
    "an unknown field": raw_recipe(graph={"fuser": {"num_block": 2}}),
    "another type's field": raw_recipe(graph={"grouper": {"groups": [[1]]}}),
    "a missing field": raw_recipe(graph={"grouper": {"type": "listed"}}),
    "a number out of range": raw_recipe(graph={"injector": {"dropout": 1.5}}),
    "a text for a number": raw_recipe(training={"batch_size": "many"}),
    "a wrong choice": raw_recipe(graph={"fuser": {"activation": "gelo"}}),
    "a name that is no role": raw_recipe(graph={"my_fuser": {"type": "mean"}}),
    "a wrong role": raw_recipe(graph={"mine": {"role": "fusser", "type": "mean"}}),
    "wires that are numbers": raw_recipe(graph={"grouper": {"inputs": {"globals": 3}}}),
    "a removed node without a parent": raw_recipe() | {"graph": {**raw_recipe()["graph"], "fuser": None}},
    "data without type": raw_recipe() | {"data": {"train": "a.jsonl"}},
    "a misspelt field of a data set": raw_recipe() | {"data": {"type": "jsonl", "trian": "a.jsonl"}},
    "a misspelt field of an encoder": raw_recipe(vision={"image": {"sise": 3}}),
    "a decoder that is a text": raw_recipe() | {"decoder": "llama"},
}
IN_CHILDREN: dict[str, dict[str, Any]] = {
    "an unknown field": {"extends": "p.yaml", "graph": {"fuser": {"num_block": 2}}},
    "an unknown type": {"extends": "p.yaml", "graph": {"fuser": {"type": "crossattention"}}},
    "a parent that is no text": {"extends": ["p.yaml"]},
    "an unknown section": {"extends": "p.yaml", "trainig": {}},
    "a number out of range": {"extends": "p.yaml", "training": {"batch_size": 0}},
}


@pytest.mark.parametrize("recipe", FAULTY.values(), ids=FAULTY)
def test_what_is_wrong_is_refused_by_schema_and_kit(validator: Draft202012Validator, recipe: dict[str, Any]) -> None:
    assert not validator.is_valid(recipe)
    with pytest.raises(ValueError):
        parse_recipe(recipe)


@pytest.mark.parametrize("recipe", IN_CHILDREN.values(), ids=IN_CHILDREN)
def test_what_is_wrong_in_a_child_is_refused(validator: Draft202012Validator, recipe: dict[str, Any]) -> None:
    assert not validator.is_valid(recipe)


def test_every_field_of_every_component_is_in_it() -> None:
    registry: Registry = schema.builtin_registry()
    definitions = schema.recipe_schema(registry)["$defs"]
    for (role, kind), config in registry.configs.items():
        assert set(config.model_fields) <= set(definitions[f"{role}.{kind}"]["properties"]), (role, kind)
