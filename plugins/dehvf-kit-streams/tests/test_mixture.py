"""Mixtures: shares, seeds, ends, streams among the sources, and a resumed run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli.commands import Command
from data.small_sets import scienceqa
from dehvf_kit_streams.mixture import MixtureDataConfig

import dehvf_kit
from dehvf_kit.data.samples import Issue
from dehvf_kit.errors import RecipeError
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit.training.run import train


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, dict[str, Any]]:
    for name, count in (("a", 40), ("b", 10)):
        rows = [{"id": str(n), "question": f"{name}{n}", "answer": name} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: {"type": "jsonl", "train": str(tmp_path / f"{name}.jsonl"), "text_only": True} for name in "ab"}


def counts(samples: list[Any]) -> Counter[str]:
    return Counter(one.id.partition("/")[0] for one in samples)


def test_weights_seeds_and_ends(sources: dict[str, dict[str, Any]]) -> None:
    whole = MixtureDataConfig(sources=sources)
    assert counts(whole.samples("train")) == {"a": 40, "b": 10} and whole.read("train").facts == {"a": 40, "b": 10}
    even = MixtureDataConfig(sources=sources, weights={"a": 1, "b": 1})
    found = even.samples("train")
    assert counts(found)["b"] == 10 and 3 <= counts(found)["a"] <= 20, "ends with the ten of b"
    assert found == even.samples("train")
    assert [one.id for one in found] != [one.id for one in even.model_copy(update={"seed": 1}).samples("train")]
    longest = MixtureDataConfig(sources=sources, weights={"a": 1, "b": 1}, stop="all_exhausted").samples("train")
    assert len({one.id for one in longest}) == len(longest) and len({one.question for one in longest}) == 50
    assert any(one.id.endswith("#2") and one.kind == "b" for one in longest)


def test_the_validation_split_is_what_the_sources_hold_out(sources: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    a, b = sources["a"] | {"validation": 0.2}, sources["b"] | {"validation": 0.2}
    one = MixtureDataConfig(sources={"a": a, "b": b})
    assert (one.parts(), one.validation_split) == (["train", "test"], "test") and counts(one.samples("test")) == {"a": 8, "b": 2}
    assert MixtureDataConfig(sources={"a": a, "b": sources["b"]}).validation_split == "test"
    two = MixtureDataConfig(sources={"a": a | {"test": b["train"]}, "b": b})
    assert two.parts() == ["train", "validation", "test"] and two.validation_split == "validation"
    assert counts(two.samples("validation")) == {"a": 8, "b": 2} and counts(two.samples("test")) == {"a": 10, "b": 2}
    assert MixtureDataConfig(sources=sources).validation_split is None


def test_a_source_is_read_in_the_split_that_it_names(sources: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = scienceqa(tmp_path / "scienceqa")
    splits = json.loads((folder / "pid_splits.json").read_text())
    (folder / "pid_splits.json").write_text(json.dumps(splits | {"trainval": splits["train"] + splits["val"]}))
    raw = {"type": "scienceqa", "path": str(folder), "train_split": "trainval", "test_split": "val"}
    found = MixtureDataConfig(sources={"a": sources["a"], "s": raw})
    assert [counts(found.samples(part)).get("s") for part in ("train", "validation", "test")] == [12, 4, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"a": 1}}, "a number above 0 for each of a, b"),
        ({"weights": {"a": 1, "b": 0}}, "a number above 0"),
        ({"size": 5}, "0 where none is"),
        ({"sources": {"a": {"type": "jsonl", "train": "a"}}}, "fewer than two"),
        ({"sources": {"a": {"type": "jsonl", "trian": "a"}, "b": {"type": "jsonl"}}}, "a: .*unknown field"),
        ({"sources": {"a": {"type": "jsonl", "prompt": {}}, "b": {"type": "jsonl"}}}, "prompt belongs to the mixture"),
    ],
)
def test_what_is_refused(world: Path, sources: dict[str, dict[str, Any]], change: dict[str, Any], message: str) -> None:
    raw = yaml.safe_load((world / "tiny.yaml").read_text())
    raw["data"] = {"type": "mixture", "sources": sources, **change}
    with pytest.raises(RecipeError, match=message):
        dehvf_kit.parse_recipe(raw)


def test_sources_are_beside_the_recipe_and_counted_by_prepare(
    command: Command, sources: dict[str, dict[str, Any]], world: Path, tmp_path: Path
) -> None:
    raw = yaml.safe_load((world / "tiny.yaml").read_text())
    own = {name: {**one, "train": f"{name}.jsonl"} for name, one in sources.items()}
    raw["data"] = {"type": "mixture", "sources": own, "weights": {"a": 4, "b": 1}}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(raw))
    found = dehvf_kit.load_recipe(tmp_path / "mixed.yaml").data
    assert [one["train"] for one in found.sources.values()] == [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    counted = ", ".join(f"{name} {count}" for name, count in counts(found.samples("train")).items())
    assert counted in command("prepare", tmp_path / "mixed.yaml", "--no-open").out


def mixed(world: Path) -> Recipe:
    raw = yaml.safe_load((world / "tiny.yaml").read_text())
    file, other = str(world / "train.jsonl"), str(world / "test.jsonl")
    streamed = {"type": "stream", "train": file, "size": 24, "shuffle": 4}
    raw["data"] = {
        "type": "mixture",
        "sources": {"s": streamed, "t": {"type": "jsonl", "train": other}},
        "prompt": raw["data"]["prompt"],
    }
    raw["data"] |= {"weights": {"s": 3, "t": 1}, "size": 24, "stop": "all_exhausted"}
    raw["training"] |= {"max_steps": 6, "save_steps": 4}
    return dehvf_kit.parse_recipe(raw)


def test_streams_are_mixed_in_an_order_of_each_pass(world: Path) -> None:
    stream = mixed(world).data.stream("train")
    first, again, second = ([one.id for one in stream.shuffled(0, turn)] for turn in (0, 0, 1))
    assert first == again != second and {one.partition("/")[0] for one in first} == {"s", "t"}


def test_bad_rows_of_a_list_beside_a_stream_are_listed(world: Path, tmp_path: Path) -> None:
    lines = (world / "test.jsonl").read_text().replace('"image": "', f'"image": "{world}/').splitlines()
    (tmp_path / "l.jsonl").write_text("\n".join([*lines[:2], lines[2].replace('"what', '"", "more": "what'), "{broken"]))
    raw = mixed(world).resolved()
    raw["data"] |= {"on_bad_sample": "skip"}
    raw["data"]["sources"]["t"]["train"] = str(tmp_path / "l.jsonl")
    recipe = dehvf_kit.parse_recipe({key: value for key, value in raw.items() if value is not None})
    issues: list[Issue] = []
    assert len({one.id for one in recipe.data.stream("train").shuffled(0, 0, issues) if one.id.startswith("t/")}) == 2
    places = {f"t/{tmp_path}/l.jsonl:{line}" for line in (3, 4)}
    assert {issue.place for issue in issues if issue.fatal} == places
    assert {one.place for one in train(recipe, tmp_path / "run").skipped_samples} == places


@pytest.mark.nightly
def test_a_resumed_mixture_of_streams_goes_on_where_it_was(world: Path, tmp_path: Path) -> None:
    def killed(stage: str, done: int, *_: object) -> None:
        if (stage, done) == ("training", 5):
            raise KeyboardInterrupt

    recipe = mixed(world)
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", progress=killed)
    cut = train(recipe, tmp_path / "cut", resume=True)
    one, other = (dehvf_kit.load(run.adapter).named_trainable_parameters() for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
