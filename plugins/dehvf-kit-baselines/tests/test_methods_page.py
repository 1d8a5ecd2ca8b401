"""Sixteen methods at three budgets: their sizes as written, the section of the results page, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.commands import Command
from dehvf_kit_baselines.reproduction import methods
from dehvf_kit_baselines.reproduction.methods import BUDGETS, budgets, cells, embedded_methods, recipes, section, sizes

from dehvf_kit.costs.parameters import parameter_table
from dehvf_kit.errors import DehvfError
from tools.methods_page import RUNS, restore, write

# The pair's sizes, so that no wheel is needed.
PAIR = [
    "vision.model=null",
    "vision.config={model_type: dinov2, hidden_size: 384, num_hidden_layers: 12, num_attention_heads: 6, patch_size: 14}",
    "decoder.model=null",
    "decoder.config={model_type: llama, hidden_size: 576, intermediate_size: 1536, num_hidden_layers: 30, num_attention_heads: 9, "
    "num_key_value_heads: 3, vocab_size: 49152}",
]


def counts(budget: str, chosen: list[str]) -> dict[str, int]:
    """What is trained, counted from configs alone."""
    found = [recipe for recipe in recipes(budget, PAIR) if recipe.name in chosen]
    return {recipe.name: parameter_table(recipe.check(), recipe.published).trainable for recipe in found}


def written(budget: str) -> dict[str, int]:
    return {name: method[budget]["trained"] for name, method in budgets()["methods"].items() if "trained" in method[budget]}


def test_what_is_written_is_counted_and_near_the_aim() -> None:
    some = ["dehvf", "no_visual_prompts", "flamingo"]
    assert counts("quarter", some) == {name: written("quarter")[name] for name in some}
    for budget in ("equal", "quarter"):
        aim = budgets()["budgets"][budget]["aim"]
        far = {name for name, count in written(budget).items() if abs(count / aim - 1) > budgets()["tolerance"]}
        assert all("note" in budgets()["methods"][name][budget] for name in far), far
    missing = [
        name for name, method in budgets()["methods"].items() for budget in BUDGETS if not {"trained", "why"} & set(method[budget])
    ]
    assert not missing and len(written("equal")) == 16 and len(written("quarter")) >= 12
    assert budgets()["budgets"]["equal"]["aim"] == written("equal")["dehvf"] == 4 * budgets()["budgets"]["quarter"]["aim"]


@pytest.mark.nightly
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_count_is_as_written(budget: str) -> None:
    assert counts(budget, list(written(budget))) == written(budget)


def share(*values: float) -> dict:
    return {"mean": sum(values) / len(values), "half": None, "count": len(values), "values": list(values)}


def compared() -> dict:
    """A comparison's table in which one method has not run."""
    tuned = {"base_learning_rate": 0.05, "at_the_edge": False, "scale": 3.0, "scale_at_the_edge": True, "scales_tried": [1]}
    ran = {"accuracy_by_kind": {"colour": share(0.4)}, "trained_parameters": 293440, "flops": {"forward": 3.1e9}, "seeds": [0]}
    ran |= {"seconds_per_step": share(0.5)}
    first = {"recipe": "dehvf", **tuned, **ran, "accuracy": share(0.8), "difference_to_first": None}
    other = {"recipe": "memvp", **tuned, **ran, "accuracy": share(0.7), "difference_to_first": share(-0.1), "scales_tried": []}
    facts = {
        "steps": 260,
        "batch": 16,
        "training_questions": 4160,
        "test_questions": 1000,
        "dates": ["2000-01-01"],
        "tuning": "One rule.",
    }
    facts |= {"machines": ["x"], "versions": {"torch": ["2"]}, "errors": ["blip2 seed0: killed"]}
    return {"rows": [first, other, {"recipe": "blip2", **tuned, "seeds": []}], "kinds": ["colour"], **facts}


def test_the_page_gets_each_budgets_table_picture_and_facts(tmp_path: Path) -> None:
    docs, runs = tmp_path / "docs", tmp_path / "runs"
    (docs / "results").mkdir(parents=True)
    page = "# A\n<!-- methods: written by `python -m tools.methods_page` -->\nold\n<!-- end of methods -->\nreading\n"
    (docs / "results.md").write_text(page)
    with pytest.raises(DehvfError, match="holds no finished run of the methods; run dehvf-kit reproduce methods"):
        section(runs, "results")
    for name in ("equal", "quarter"):
        (runs / name).mkdir(parents=True)
        (runs / name / "comparison.json").write_text(json.dumps(compared()))
        (runs / name / "comparison.csv").write_text("a,b\n")
    (runs / "equal" / "comparison.png").write_bytes(b"x")
    for label in ("seed0", "rate0.05", "seed1.working"):
        ran = runs / "equal" / "runs" / "memvp" / label
        ran.mkdir(parents=True)
        (ran / "job.json").write_text('{"name": "memvp", "recipe": {"decoder": {"dtype": "bfloat16"}}}')
        (ran / "result.json").write_text(json.dumps({"seconds": 1.5, "label": label}))
    write(runs, docs)
    text = (docs / "results.md").read_text()
    assert text.startswith("# A\n") and text.endswith("<!-- end of methods -->\nreading\n") and "old" not in text
    assert "| DEHVF | 80.0 | 40.0 | - | 1 | 293,440 | 3.10 | 0.500 | 0.05 | 3 (edge) |" in text
    assert "| MemVP | 70.0 | 40.0 | -10.0 | 1 | 293,440 | 3.10 | 0.500 | 0.05 | - |" in text
    assert "| BLIP-2 | not run | - |" in text and "Failed: blip2 seed0: killed" in text
    assert "as many as DEHVF's demo recipe, 293,440" in text and "Left out: LaVIN (its narrowest" in text and "One rule." in text
    assert text.count("results/methods_equal.png") == 1 and "methods_quarter.png" not in text
    assert (docs / "results" / "methods_equal.png").read_bytes() == b"x" and (docs / "results" / "methods_quarter.csv").exists()
    head, found = cells(compared())
    assert {len(row) for row in found} == {len(head)}
    kept, back = docs / "results" / RUNS, tmp_path / "back"
    assert (restore(back, kept), restore(back, kept)) == (2, 0), "what has finished, once"
    assert json.loads((back / "equal/runs/memvp/seed0/result.json").read_text()) == {"seconds": 1.5, "label": "seed0"}
    assert json.loads((back / "dtype.json").read_text()) == "bfloat16", "what the further runs compute in"
    assert {one.name for one in back.glob("equal/runs/memvp/*")} == {"seed0", "rate0.05"}


def test_the_command_prints_the_sizes_and_runs_the_budgets(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = command("reproduce", "methods")
    assert ended.code == 0 and "277,344 (-5.5%)" in ended.out and "--embedded" in ended.out
    assert len(sizes()[1]) == 16 and json.loads(command("reproduce", "methods", "--json").out)["tolerance"] == 0.03
    asked = {}

    def run(folder: Path, **how: object) -> dict:
        asked.update(how, folder=folder)
        return {"equal": compared()}

    monkeypatch.setattr(methods, "embedded_methods", run)
    ended = command("reproduce", "methods", "--embedded", "--runs", tmp_path, "--seeds", 1, "--hours", 0.5, "--jobs", 2)
    assert ended.code == 0 and "MemVP" in ended.out and "-10.0" in ended.out, ended
    assert asked == {"folder": tmp_path / "methods_embedded", "seeds": 1, "hours": 0.5, "side_by_side": 2, "say": asked["say"]}


@pytest.mark.demo
def test_two_steps_of_two_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = recipes
    monkeypatch.setattr(methods, "recipes", lambda *words: every(*words)[:2])
    few = ["data.train_questions=32", "data.test_questions=8"]
    found = embedded_methods(tmp_path, seeds=1, steps=2, names=["quarter"], tune=False, overrides=few)
    assert [row["recipe"] for row in found["quarter"]["rows"]] == ["dehvf", "mean_weights"] and not found["quarter"]["errors"]
    assert float((tmp_path / "cpu_seconds.json").read_text()) > 1
