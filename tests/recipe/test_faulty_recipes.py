"""What a tired user reads: every faulty recipe gives its message, says where, what was given and what would do.

Each row is a recipe, or a change of the tiny base recipe, with all the faults it must report and no others.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import raw_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe.faulty_changes import CHANGES, GONE, MISSING

import dehvf_kit
from dehvf_kit.errors import DehvfError, RecipeError

pytestmark = pytest.mark.usefixtures("builtins_alone")

# YAML text -> faults; the file is called recipe.yaml.
TEXTS: dict[str, tuple[str, list[str]]] = {
    "duplicate key": (
        "graph:\n  fuser: {type: mean}\n  fuser: {type: mean}\n",
        ["line 3, column 3: not valid YAML: key 'fuser' stands twice, first on line 2"],
    ),
    "alias": ("graph: &all {}\ntraining: *all\n", ["line 2, column 11: not valid YAML: alias '*all'…`extends:`"]),
    "merge key": ("graph:\n  <<: {fuser: {type: mean}}\n", ["line 2, column 3: not valid YAML: merge key `<<`…`extends:`"]),
    "tab": ("graph:\n\tfuser: {type: mean}\n", ["line 2, column 1: not valid YAML: a tab"]),
    "open bracket": ("graph: {fuser: [1\n", ["line 2, column 1: not valid YAML: the text ends inside a bracket or a quote"]),
    "two documents": ("name: a\n---\nname: b\n", ["line 2, column 1: not valid YAML: a second document begins here"]),
    "Python object": ("name: !!python/object/apply:os.getcwd []\n", ["line 1, column 7: not valid YAML: a tag such as `!name`"]),
    "number as key": ("1: a\n", ["line 1, column 1: not valid YAML: key 1 is no text"]),
    "empty key": ("'': 1\n", ["line 1, column 1: not valid YAML: an empty key"]),
    "list as key": ("? [a]\n: 1\n", ["line 1, column 3: not valid YAML: key ['a'] is no text"]),
    "nested without end": ("[" * 5000, ["line 1, column 33: not valid YAML: nested more than 32 deep"]),
    "empty": ("# nothing yet\n", ["is empty…`decoder`…`vision`…`graph`"]),
    "list on top": ("- graph\n", ["holds a list"]),
    "text on top": ("llama\n", ["holds a text"]),
    "date and NaN": ("name: 2026-01-31\ntraining: {epochs: .nan}\n", ["name: 2026-01-31 is a date", "training.epochs: given nan"]),
    "missing sections": ("name: a\n", MISSING),
    "parent missing": ("extends: llama.yaml\n", ["extends: there is no recipe 'llama.yaml'…'llama7b.yaml'"]),
    "parent of itself": ("extends: recipe.yaml\n", ["extends: recipes extend each other in a circle: recipe.yaml -> recipe.yaml"]),
    "parents as a list": ("extends: [llama7b.yaml]\n", ["extends: given ['llama7b.yaml']"]),
    "parent without a name": ("extends: ''\n", ["extends: given ''"]),
    "removes what the parent has not": (
        "extends: llama7b.yaml\ngraph: {fusser: null}\n",
        ["graph.fusser: null removes a node, but none is named so…'fuser'"],
    ),
}

OVERRIDES: dict[str, tuple[str, str]] = {
    "no value": ("training.batch_size", "override: training.batch_size: an override is written key=value"),
    "no key": ("=3", "override: =3: an override is written key=value"),
    "empty step": ("graph..type=mean", "override: graph..type=mean: an override is written key=value"),
    "below a value": ("name.first=a", "override name.first=a: name: is 'tiny', which has no field 'first'"),
    "not YAML": (
        "graph.fuser.num_heads=[2",
        "override graph.fuser.num_heads=[2: line 1, column 3: not valid YAML: the text ends inside a bracket or a quote",
    ),
    "text with a colon": (
        "data.prompt.question=Q: {question} A:",
        "override data.prompt.question=Q: {question} A:: line 1, column 15: not valid YAML: expected <block end>, but found "
        "'<scalar>'\noverride data.prompt.question=Q: {question} A:: data.prompt.question: if a text is meant, quote it: "
        "'data.prompt.question=\"Q: {question} A:\"'",
    ),
    "wrong type": ("graph.fuser.num_heads=two", "recipe.yaml: graph.fuser.num_heads: given 'two'"),
    "removes what is not there": (
        "graph.fusr=null",
        "override graph.fusr=null: graph.fusr: null removes a node, but none is named so…'fuser'",
    ),
    "another parent": ("extends=a.yaml", "recipe.yaml: extends: only a recipe in a file can name a parent, on its own top level"),
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    raw = raw_recipe()
    for path, value in changes.items():
        place, steps = raw, path.split(".")
        for step in steps[:-1]:
            place = place[step]
        if value is GONE:
            del place[steps[-1]]
        else:
            place[steps[-1]] = copy.deepcopy(value)
    return raw


def tells(text: str, phrases: str) -> bool:
    """Whether a message begins with the first key phrase and holds the others in their order; … stands between them."""
    first, *others = phrases.split("…")
    if not text.startswith(first):
        return False
    place = len(first)
    for phrase in others:
        place = text.find(phrase, place) + len(phrase)
        if place < len(phrase):
            return False
    return True


def assert_reports(error: RecipeError, source: str, expected: list[str]) -> None:
    """All faults and no others, in order."""
    found = [str(fault) for fault in error.faults]
    assert len(found) == len(expected), found
    for ours, theirs in zip(found, expected, strict=True):
        assert tells(ours, theirs), f"{ours!r} does not tell {theirs!r}"
    assert str(error) == "\n".join(f"{source}: {fault}" for fault in found)
    assert isinstance(error, DehvfError) and isinstance(error, ValueError)
    for text in found:
        assert not any(double in text for double in ("..", ";;", ". .", ".;", "?.", "?;", ";.")), f"punctuation: {text}"


def test_the_table_is_as_long_as_promised():
    assert len(TEXTS) + len(CHANGES) + len(OVERRIDES) >= 45


def test_the_base_of_the_table_is_sound():
    dehvf_kit.parse_recipe(raw_recipe()).check()


@pytest.mark.parametrize("case", TEXTS)
def test_faulty_text(case, tmp_path, monkeypatch):
    text, expected = TEXTS[case]
    monkeypatch.chdir(tmp_path)
    Path("llama7b.yaml").write_text("graph: {fuser: {type: mean}}\n")
    Path("recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        dehvf_kit.load_recipe("recipe.yaml")
    assert_reports(caught.value, "recipe.yaml", expected)


@pytest.mark.parametrize("case", CHANGES)
def test_faulty_recipe(case):
    changes, expected = CHANGES[case]
    with pytest.raises(RecipeError) as caught:
        dehvf_kit.parse_recipe(changed(changes), "mine.yaml")
    assert_reports(caught.value, "mine.yaml", expected)


@pytest.mark.parametrize("case", OVERRIDES)
def test_faulty_override(case, tmp_path, monkeypatch):
    override, message = OVERRIDES[case]
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(raw_recipe()))
    with pytest.raises(RecipeError) as caught:
        dehvf_kit.load_recipe("recipe.yaml", ["training.seed=3", override])
    lines = str(caught.value).splitlines()
    assert len(lines) == len(message.splitlines()), lines
    assert all(tells(ours, theirs) for ours, theirs in zip(lines, message.splitlines(), strict=True)), lines


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("recipes/llama7b.yml", r"recipes/llama7b\.yml: there is no such file; did you mean 'llama7b\.yaml'\?$"),
        ("nowhere/at/all.yaml", r"nowhere/at/all\.yaml: there is no such file\.$"),
        ("recipes", r"recipes: is a folder; name a \.yaml file$"),
        ("recipes/latin1.yaml", r"recipes/latin1\.yaml: cannot be read: 'utf-8' codec"),
        ("recipes/large.yaml", r"recipes/large\.yaml: has 100001 bytes; a recipe has at most 100000$"),
        ("a\0b.yaml", "cannot be read: .*embedded null"),
    ],
)
def test_a_file_that_cannot_be_read(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/llama7b.yaml").write_text("name: a\n")
    Path("recipes/latin1.yaml").write_bytes("name: é\n".encode("latin1"))
    Path("recipes/large.yaml").write_text("#" * 100_001)
    with pytest.raises(RecipeError, match=message):
        dehvf_kit.load_recipe(path)


def test_a_long_circle_and_a_long_line_of_parents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, parent in {"a": "b", "b": "c", "c": "b"}.items():
        Path(f"{name}.yaml").write_text(f"extends: {parent}.yaml\n")
    with pytest.raises(RecipeError, match=r"recipes extend each other in a circle: b\.yaml -> c\.yaml -> b\.yaml"):
        dehvf_kit.load_recipe("a.yaml")
    for number in range(20):
        Path(f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    with pytest.raises(RecipeError, match="more than 16 parents in a row"):
        dehvf_kit.load_recipe("0.yaml")


def test_a_huge_value_is_cut_in_its_message():
    with pytest.raises(RecipeError) as caught:
        dehvf_kit.parse_recipe(changed({"graph.fuser.num_heads": ["x" * 1000] * 1000}))
    assert len(str(caught.value)) < 250


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 99),
    st.floats(),
    st.sampled_from(["", "x", "vision", "batch", "decoder", "mean", "fuser.fused", "vision.patches", "../x", "a b", "\0"]),
    st.sampled_from([[], {}, [[]], [{}], [None], ["vision", "vision"], {"a": {"b": []}}, {"type": None}, {"model": 3}]),
)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), values=st.lists(ODD, min_size=1, max_size=3))
def test_no_odd_value_anywhere_gives_a_traceback(seed, values):
    """Random places of the recipe get random values, or names; only RecipeError may come out."""
    draw, raw = random.Random(seed), raw_recipe()
    for value in values:
        place, key = draw.choice([found for found in _places(raw) if found[1] != "num_hidden_layers"])
        if isinstance(place, dict) and draw.random() < 0.2:
            place[f"{key}s"] = place.pop(key)
        else:
            place[key] = copy.deepcopy(value)
    try:
        recipe = dehvf_kit.parse_recipe(raw)
    except RecipeError as error:
        assert error.faults and all(fault.message for fault in error.faults)
        return
    assert dehvf_kit.parse_recipe(recipe.resolved(), recipe.source) == recipe


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    found = []
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        found.append((tree, key))
        if isinstance(tree[key], dict | list):
            found += _places(tree[key])
    return found
