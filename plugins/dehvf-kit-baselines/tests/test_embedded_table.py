"""Table 4 in miniature: its rows, differences seed by seed, the CPU budget, and two steps of two rows for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.commands import Command
from dehvf_kit_baselines.reproduction import embedded
from dehvf_kit_baselines.reproduction.embedded import ROWS, UNPRINTED, cells, embedded_table4, markdown, table4_of
from dehvf_kit_baselines.reproduction.tables import ROOT, published
from dehvf_kit_compare.cpu_hours import OutOfHours

from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.files import flat
from dehvf_kit.recipe.recipe import load_recipe
from dehvf_kit.utils.plain_data import read_yaml


def share(*values: float) -> dict:
    return {"mean": sum(values) / len(values), "half": None, "count": len(values), "values": list(values)}


def compared(rows: dict[str, tuple[list[int], list[float]]]) -> dict:
    """A comparison's table in which questions about colours are answered half as often."""
    found = []
    for recipe, (seeds, values) in rows.items():
        row = {"recipe": recipe, "base_learning_rate": 0.05, "at_the_edge": False, "seeds": seeds}
        if values:
            row |= {"accuracy": share(*values), "accuracy_by_kind": {"colour": share(*(value / 2 for value in values))}}
        found.append(row)
    facts = {"test_questions": 8, "training_questions": 24, "tuning": None, "machines": ["x"], "dates": ["2000-01-01"]}
    return {"rows": found, "kinds": ["colour"], "versions": {}, "errors": [], **facts}


def test_the_rows_are_the_papers_and_differ_as_its_recipes_do() -> None:
    without_figure = {
        "method": "learned tokens as queries",
        "run": "learned_tokens",
        "recipe": "recipes/ablations/learned_tokens.yaml",
    }
    printed = [*published()["table4"]["rows"], without_figure]
    assert list(ROWS) == [row["method"].removesuffix(" 7B") for row in printed]
    for row, (name, changes) in zip(printed[1:], list(ROWS.values())[1:], strict=True):
        assert name == row["run"]
        file, wanted = ROOT / row["recipe"], {}
        while file.name != "llama7b_clip.yaml":  # the ablation's own fields, its parents' below them
            raw = dict(read_yaml(file, file.name))
            wanted = {**dict(flat(raw["graph"])), **wanted}
            file = (file.parent / raw["extends"]).resolve()
        found = dict(change.removeprefix("graph.").split("=", 1) for change in changes)
        assert {key: str(value).replace("None", "null").replace("'", "").lower() for key, value in wanted.items()} == found


def test_differences_are_taken_seed_by_seed() -> None:
    """By hand: differences of -0.1 and -0.3 have the mean -0.2, a standard error of 0.1 and t(0.975, 1) = 12.706."""
    rows = {"dehvf": ([0, 1], [0.8, 0.9]), "mean_weights": ([1, 0], [0.6, 0.7]), "keys_only": ([], [])}
    names = ["DEHVF", "w/o adaptive weights", "prompts in keys only"]
    found = table4_of(compared(rows), names)
    first, mean, keys = found["rows"]
    assert first["difference"] == {} and first["published"] == 93.54
    assert mean["difference"]["all"] == {"mean": pytest.approx(-0.2), "half": pytest.approx(12.7062 * 0.1, rel=1e-4), "count": 2}
    assert mean["difference"]["colour"]["mean"] == pytest.approx(-0.1)
    assert keys["difference"] == {"all": None, "colour": None}
    head, shown = cells({**found, "steps": 2, "cpu_hours": 0.1})
    assert head[-2:] == ["vs DEHVF: all", "vs DEHVF: colour"] and shown[2][2] == "not run" and shown[1][-2] == "-20.0 ± 127.1"
    assert "| w/o adaptive weights | 92.64 | 65.0 ±" in markdown({**found, "steps": 2, "cpu_hours": 0.1})


@pytest.mark.nightly
def test_two_rows_of_two_steps_and_what_is_left_when_the_hours_are_over(world: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    how = {"seeds": 1, "steps": 2, "recipe": world / "tiny.yaml", "rows": ["DEHVF", "prompts in keys only"], "tune": False}
    with pytest.raises(OutOfHours):
        embedded_table4(tmp_path, **how, hours=0.0001)
    kept = json.loads((tmp_path / "table4.json").read_text())
    assert [len(row["seeds"]) for row in kept["rows"]] == [1, 0] and "not run" in (tmp_path / "table4.md").read_text()
    found = embedded_table4(tmp_path, **how, say=lines.append)
    assert [len(row["seeds"]) for row in found["rows"]] == [1, 1] and any(
        "dehvf seed0" in line and "reused" in line for line in lines
    )
    assert found["rows"][1]["difference"]["all"]["count"] == 1 and 0 < found["cpu_hours"] < 0.1


@pytest.mark.nightly
def test_the_row_without_a_figure_comes_last(world: Path, tmp_path: Path) -> None:  # noqa: F811
    how = {"seeds": 1, "steps": 1, "recipe": world / "tiny.yaml", "rows": ["DEHVF", UNPRINTED], "tune": False}
    how |= {"overrides": ["graph.layer_query.query_size=8"]}
    with pytest.raises(OutOfHours):
        embedded_table4(tmp_path, **how, hours=0.0001)
    assert [len(row["seeds"]) for row in json.loads((tmp_path / "table4.json").read_text())["rows"]] == [1, 0]
    found = embedded_table4(tmp_path, **how)
    assert [len(row["seeds"]) for row in found["rows"]] == [1, 1] and found["rows"][1]["published"] is None


@pytest.mark.demo
def test_two_steps_of_the_embedded_pair(tmp_path: Path) -> None:
    how = {"seeds": 1, "steps": 2, "rows": ["DEHVF", "w/o visual prompts"], "tune": False}
    found = embedded_table4(tmp_path, **how, overrides=["data.train_scenes=20", "data.test_scenes=10"])
    assert [row["method"] for row in found["rows"]] == how["rows"] and not found["errors"]
    assert {"all", "kind", "colour", "texture", "side", "count", "presence"} <= set(found["kinds"])


def test_the_command_runs_table4_alone(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--embedded is for table4 and methods, not for table1" in command("reproduce", "table1", "--embedded").err
    rows = {"dehvf": ([0], [0.8]), "mean_weights": ([0], [0.7])}
    found = table4_of(compared(rows), ["DEHVF", "w/o adaptive weights"]) | {"steps": 3, "cpu_hours": 0.0}
    asked = {}

    def run(folder: Path, **how: object) -> dict:
        asked.update(how, folder=folder)
        return found

    monkeypatch.setattr(embedded, "embedded_table4", run)
    ended = command("reproduce", "table4", "--embedded", "--runs", tmp_path, "--steps", 3, "--hours", 0.5)
    assert ended.code == 0 and "w/o adaptive weights" in ended.out and "-10.0" in ended.out, ended
    assert asked == {"folder": tmp_path / "table4_embedded", "steps": 3, "hours": 0.5, "say": asked["say"]}


def test_an_interrupted_table_goes_on_in_the_dtype_that_it_was_begun_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(recipes: list, *_: object, **__: object) -> None:
        asked.append([recipe.decoder.dtype for recipe in recipes])
        raise OutOfHours("over")

    asked: list[list[str]] = []
    monkeypatch.setattr(embedded.dehvf_kit, "compare", stop)
    for dtype in ("bfloat16", "float32"):
        monkeypatch.setattr("dehvf_kit_demo.sources.faster_dtype", lambda dtype=dtype: dtype)
        with pytest.raises(OutOfHours):
            embedded_table4(tmp_path, rows=["DEHVF"], tune=False)
    assert asked == [["bfloat16"], ["bfloat16"]]


def test_a_recipe_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DehvfError, match="it is in the repository"):
        embedded.embedded_recipes(tmp_path / "none.yaml", [])
    assert load_recipe(ROOT / embedded.RECIPE).data.type == "drawings"
