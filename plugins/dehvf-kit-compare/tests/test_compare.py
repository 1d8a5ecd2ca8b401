"""The comparison as a whole on runs that only pretend to train: order, tuning, resuming, failing, table and picture."""

from __future__ import annotations

import csv
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from dehvf_kit_compare import cpu_hours, processes
from dehvf_kit_compare.figure import heading
from dehvf_kit_compare.processes import locked
from PIL import Image
from typer.testing import CliRunner, Result

import dehvf_kit
from dehvf_kit.cli.main import app
from dehvf_kit.errors import DehvfError

FAULTY, KILLED, SILENT = 0.111, 0.222, 0.333


@pytest.fixture(autouse=True)
def pretending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "RUNNER", "fake_runner")
    monkeypatch.setattr(processes, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def say(*words: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def order(output: Path) -> list[str]:
    return (output / "runs" / "order.txt").read_text().splitlines()


def rows(output: Path) -> dict[str, dict]:
    return {row["recipe"]: row for row in json.loads((output / "comparison.json").read_text())["rows"]}


def test_a_comparison_from_python_is_the_commands(recipes: list[Path], tmp_path: Path) -> None:
    lines: list[str] = []
    found = dehvf_kit.compare(recipes, tmp_path / "out", seeds=1, overrides=["training.epochs=1"], say=lines.append)
    assert [row["recipe"] for row in found.rows] == ["dehvf", "mean"] == list(rows(tmp_path / "out")) and not found.errors
    assert found.figure == tmp_path / "out" / "comparison.png" and any("seeds, 2 of 2 runs" in line for line in lines)
    if find_spec("pandas"):
        assert list(found.to_pandas()["recipe"]) == ["dehvf", "mean"]


def test_without_the_plugin_compare_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dehvf_kit_compare")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dehvf_kit_compare", None)
    with pytest.raises(DehvfError, match=r"pip install 'dehvf-kit\[compare\]'"):
        dehvf_kit.compare(["a.yaml"])


def test_seeds_of_all_recipes_take_turns_and_make_a_table(recipes: list[Path], tmp_path: Path) -> None:
    result = say(*recipes, "--seeds", 2, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert order(tmp_path / "out") == ["dehvf seed0", "mean seed0", "dehvf seed1", "mean seed1"]
    found = rows(tmp_path / "out")["mean"]
    first = 1 / 1.2
    assert found["accuracy"]["values"] == pytest.approx([first, first - 0.01])
    assert found["accuracy"]["half"] == pytest.approx(12.7062 * 0.005)  # t(0.975, 1) * s / sqrt(2), s = 0.01 / sqrt(2)
    assert found["difference_to_first"] == {"mean": 0.0, "half": 0.0, "count": 2, "values": [0.0, 0.0]}
    assert (found["step_memory"]["mean"], found["peak_memory"]["mean"]) == (2000, 3000)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| mean | 82.8 ± 6.4 | 82.8 ± 6.4 | +0.0 ± 0.0 | 2 | 1,234 |" in text
    assert "24 training questions, 12 steps of 4; 8 test questions; seeds 0 to 1." in text
    assert "Run 2000-01-01 on pretended; dehvf-kit 0." in text and "tuned" not in text
    lines = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert [line["recipe"] for line in lines] == ["dehvf", "mean"]
    assert float(lines[1]["accuracy colour"]) == pytest.approx(first - 0.005)
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.size[0] > 1000
    assert "82.8 ± 6.4" in result.stdout and "comparison.md" in result.stdout


def test_what_is_finished_is_taken_over_and_more_may_be_added(recipes: list[Path], tmp_path: Path) -> None:
    assert say(recipes[0], "--seeds", 1, "--output", tmp_path).exit_code == 0
    result = say(*recipes, "--seeds", 2, "--output", tmp_path)
    assert result.exit_code == 0 and "dehvf seed0 83.3%, reused" in result.stderr
    assert order(tmp_path) == ["dehvf seed0", "mean seed0", "dehvf seed1", "mean seed1"]


def test_a_killed_run_is_run_again(recipes: list[Path], tmp_path: Path) -> None:
    left = tmp_path / "runs" / "dehvf" / "seed0.working"
    left.mkdir(parents=True)
    (left / "result.json").write_text("{}")
    assert say(recipes[0], "--seeds", 1, "--output", tmp_path).exit_code == 0
    assert order(tmp_path) == ["dehvf seed0"] and not left.exists()


def test_other_settings_in_the_same_folder_are_refused(recipes: list[Path], tmp_path: Path) -> None:
    assert say(recipes[0], "--seeds", 1, "--output", tmp_path).exit_code == 0
    result = say(recipes[0], "--seeds", 1, "--output", tmp_path, "training.epochs=3")
    assert result.exit_code == 1 and "training.epochs: 2.0, now 3.0" in result.stderr
    assert "Traceback" not in result.output


def test_tuning_tries_one_grid_and_uses_the_best(recipes: list[Path], tmp_path: Path) -> None:
    result = say(*recipes, "--seeds", 1, "--tune", "--validation", 0.3, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    tried = [f"{name} rate{rate}" for name in ("dehvf", "mean") for rate in (0.05, 0.1, 0.2, 0.4, 0.8)]
    assert order(tmp_path) == [*tried, "dehvf seed0", "mean seed0"]
    row = rows(tmp_path)["dehvf"]
    assert row["base_learning_rate"] == 0.4 and row["accuracy"]["mean"] == 1.0 and not row["at_the_edge"]
    assert [one["base_learning_rate"] for one in row["tried"]] == [0.05, 0.1, 0.2, 0.4, 0.8]
    job = json.loads((tmp_path / "runs" / "dehvf" / "rate0.05" / "job.json").read_text())
    assert job["hold_out"] == {"share": 0.3, "questions": 500}
    training = job["recipe"]["training"]
    assert (training["max_steps"], training["warmup_epochs"], training["seed"]) == (2, pytest.approx(0.1), 0)  # 12 / 5
    seeded = json.loads((tmp_path / "runs" / "dehvf" / "seed0" / "job.json").read_text())
    assert seeded["hold_out"] is None and seeded["recipe"]["training"]["max_steps"] == 0
    text = (tmp_path / "comparison.md").read_text()
    assert "**0.4: 100.0%**" in text and "same tuning protocol" in text


def test_a_grid_whose_edge_is_best_goes_on_beyond_it(recipes: list[Path], tmp_path: Path) -> None:
    assert say(recipes[0], "--seeds", 1, "--rates", "0.1,0.2,0.3", "--output", tmp_path).exit_code == 0
    assert order(tmp_path)[3:] == ["dehvf rate0.45", "dehvf rate0.675", "dehvf seed0"]
    assert rows(tmp_path)["dehvf"]["base_learning_rate"] == 0.45 and not rows(tmp_path)["dehvf"]["at_the_edge"]


def test_an_edge_that_stays_best_is_told(recipes: list[Path], tmp_path: Path) -> None:
    assert say(recipes[0], "--seeds", 1, "--rates", "0.01,0.02,0.03", "--output", tmp_path).exit_code == 0
    assert order(tmp_path)[3:] == ["dehvf rate0.045", "dehvf rate0.0675", "dehvf seed0"]
    assert rows(tmp_path)["dehvf"]["at_the_edge"] is True
    assert "0.0675 (edge)" in (tmp_path / "comparison.md").read_text()


def test_strengths_are_tuned_at_the_best_rate(recipes: list[Path], tmp_path: Path) -> None:
    """The pretended accuracy is highest where the memory's output_scale, 1 in the recipe, is 8."""
    result = say(*recipes, "--seeds", 1, "--rates", "0.3,0.4,0.5", "--strengths", "0.5,1,2", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    ran = [line for line in order(tmp_path) if line.startswith("mean ")]
    assert ran == ["mean rate0.3", "mean rate0.4", "mean rate0.5", "mean scale0.5", "mean scale2", "mean scale4", "mean scale8"] + [
        "mean seed0"
    ]
    for label, scale in (("rate0.4", 1), ("scale4", 4), ("seed0", 8)):
        recipe = json.loads((tmp_path / "runs" / "mean" / label / "job.json").read_text())["recipe"]
        assert recipe["graph"]["injector"]["output_scale"] == scale
        assert recipe["training"]["base_learning_rate"] == 0.4
    row = rows(tmp_path)["mean"]
    assert row["scale"] == 8 and not row["at_the_edge"]
    assert [one["scale"] for one in row["scales_tried"]] == [0.5, 1, 2, 4, 8]
    text = (tmp_path / "comparison.md").read_text()
    assert "the strength with which it acts on the decoder times 0.5, 1, 2" in text
    assert "| x 8 (edge) |" in text and "0.3: 90.9% · **0.4: 100.0%** · 0.5: 90.9%" in text
    assert "mean: base learning rate 0.4, strength times 8" in result.stderr


@pytest.mark.parametrize("option", ["--strengths", "--scales"])
def test_strengths_that_are_no_numbers_are_refused(recipes: list[Path], tmp_path: Path, option: str) -> None:
    result = say(*recipes, option, "1,big", "--output", tmp_path)
    assert result.exit_code == 1 and "--strengths: given '1,big'" in result.stderr


@pytest.mark.parametrize(
    ("way", "says"), [(FAULTY, "picture 'a.png' cannot be read"), (KILLED, "killed by signal 9"), (SILENT, "ended with status 3")]
)
def test_a_run_that_fails_ends_alone(recipes: list[Path], tmp_path: Path, way: float, says: str) -> None:
    failing = tmp_path / "failing.yaml"
    failing.write_text(f"extends: {recipes[0]}\nname: failing\ntraining: {{weight_decay: {way}}}\n")
    result = say(failing, recipes[1], "--seeds", 1, "--output", tmp_path / "out")
    assert result.exit_code == 1 and says in result.stderr and "Traceback" not in result.output
    assert "accuracy" not in rows(tmp_path / "out")["failing"]
    assert rows(tmp_path / "out")["mean"]["accuracy"]["count"] == 1
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| failing | not run |" in text and f"- failing seed0: {says}" in text
    again = say(failing, recipes[1], "--seeds", 1, "--output", tmp_path / "out")
    assert again.exit_code == 1 and order(tmp_path / "out") == ["failing seed0", "mean seed0", "failing seed0"]


def test_runs_side_by_side_give_the_same(recipes: list[Path], tmp_path: Path) -> None:
    result = say(*recipes, "--seeds", 2, "--jobs", 3, "--threads", 1, "--output", tmp_path, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["side_by_side"] == 3 and [row["seeds"] for row in found["rows"]] == [[0, 1], [0, 1]]
    assert "3 runs side by side" in (tmp_path / "comparison.md").read_text()


def test_hours_that_are_over_end_it_when_what_has_begun_has_ended(
    recipes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run takes a pretended half hour of CPU time; with nothing left to run, the hours do not matter."""
    ended: list[object] = []
    outcome = processes._outcome
    monkeypatch.setattr(processes, "_outcome", lambda *words: ended.append(words) or outcome(*words))
    monkeypatch.setattr(cpu_hours, "_children", lambda: 1800.0 * len(ended))
    result = say(*recipes, "--seeds", 2, "--hours", 0.5, "--jobs", 2, "--output", tmp_path)
    assert result.exit_code == 1 and "1.0 CPU hours are used, of 0.5; what is finished is kept there" in result.stderr
    assert sorted(order(tmp_path)) == ["dehvf seed0", "mean seed0"]
    assert [row["seeds"] for row in rows(tmp_path).values()] == [[0], [0]]
    assert (tmp_path / "comparison.png").exists() and not list(tmp_path.glob("runs/*/*.working"))
    assert float((tmp_path / "cpu_seconds.json").read_text()) == 3600
    assert say(recipes[0], "--seeds", 1, "--hours", 0.5, "--output", tmp_path).exit_code == 0
    more = say(recipes[0], "--seeds", 2, "--hours", 0.5, "--output", tmp_path)
    assert more.exit_code == 1 and "of 0.5;" in more.stderr and len(order(tmp_path)) == 2


@pytest.mark.parametrize("broken", ["[]", "", "true"])
def test_a_broken_record_of_hours_is_told(recipes: list[Path], tmp_path: Path, broken: str) -> None:
    (tmp_path / "cpu_seconds.json").write_text(broken)
    result = say(recipes[0], "--hours", 1, "--output", tmp_path)
    assert result.exit_code == 1 and "cpu_seconds.json" in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{mean}", "{dehvf}", "training.epocs=3"], "training.epocs: unknown field; did you mean 'epochs'?"),
        (["nowhere.yaml", "neither.yaml"], "neither.yaml: there is no such file"),
        (["neither.yaml", "neither.yaml"], "neither.yaml: there is no such file"),
        (["training.epochs=3"], "name at least one recipe"),
        (["{dehvf}", "{dehvf}"], "'dehvf' is another recipe's too"),
        (["{dehvf}", "name=a/b"], "'a/b' cannot name a folder"),
        (["{dehvf}", "data=null"], "has no `data` section"),
        (["{dehvf}", "data.test=nowhere.jsonl"], "data.test: there is no file 'nowhere.jsonl'"),
        (["{dehvf}", "graph.fuser.hidden_size=12"], "graph.fuser"),
        (["{dehvf}", "--rates", "0.1,x"], "--rates: given '0.1,x'"),
        (["{dehvf}", "--tune", "--rate-factors", "1,0"], "--rate-factors: given '1,0'"),
        (["{dehvf}", "--tune", "--rate-factors", "1,1"], "wants different positive numbers"),
        (["{dehvf}", "--tune", "--rate-factors", "inf"], "--rate-factors: given 'inf'"),
        (["{dehvf}", "--output", "{dehvf}"], "a file is where a folder should be; name another place"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(recipes: list[Path], tmp_path: Path, words: list[str], says: str) -> None:
    names = {"dehvf": recipes[0], "mean": recipes[1]}
    result = say("--output", tmp_path / "out", *(word.format(**names) for word in words))
    assert result.exit_code == 1 and says in result.stderr, result.output
    assert len(set(result.stderr.splitlines())) == len(result.stderr.splitlines()), "a fault is told once"
    assert "Traceback" not in result.output and not (tmp_path / "out").exists()


def test_one_recipe_alone_is_noted(recipes: list[Path], tmp_path: Path) -> None:
    note = "note: one recipe alone is compared with nothing; name others too"
    assert note in say(recipes[0], "data=null", "--output", tmp_path / "out").stderr
    assert note not in say(*recipes[:2], "data=null", "--output", tmp_path / "out").stderr


def test_a_folder_serves_one_comparison_at_a_time(recipes: list[Path], tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(DehvfError, match="another comparison, or a run of one, is at work"), locked(tmp_path):
        pass  # fmt: skip
    with locked(tmp_path):
        result = say(recipes[0], "--output", tmp_path)
    assert result.exit_code == 1 and "is at work in it" in result.stderr


def test_without_matplotlib_the_table_is_there(recipes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = say(recipes[0], "--seeds", 1, "--output", tmp_path)
    assert result.exit_code == 0 and "pip install 'dehvf-kit[figures]'" in result.stderr
    assert (tmp_path / "comparison.md").exists() and not (tmp_path / "comparison.png").exists()


@pytest.mark.parametrize(
    ("seeds", "words"), [((1, 1), "one seed"), ((3, 3), "mean of 3 seeds with 95% interval"), ((1, 2), "mean of 1 to 2 seeds with")]
)
def test_the_figures_heading_counts_the_seeds_that_ran(seeds: tuple[int, ...], words: str) -> None:
    rows = [{"seeds": list(range(count)), "accuracy": {}} for count in seeds]
    assert heading({"test_questions": 1000, "seeds": 3, "rows": [*rows, {"seeds": []}]}).startswith(
        f"1,000 test questions, {words}"
    )
