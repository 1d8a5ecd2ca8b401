"""The demo as a whole on a tiny world: both runs, the probes, the page, and going on with a finished one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from timeit import Timer

import pytest
import torch
from cli.commands import Command, command, wide  # noqa: F401 - fixtures
from dehvf_kit_demo import demo
from dehvf_kit_demo.beside_probe import probe_section
from dehvf_kit_demo.sources import faster_dtype, faster_threads
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

from dehvf_kit.recipe.recipe import load_recipe

WITHOUT = "graph: {grouper: null, layer_query: null, projector: null, fuser: null}\n"


def score(accuracy: float) -> dict:
    return {"accuracy": accuracy, "questions": 20, "low": accuracy - 0.05, "high": accuracy + 0.05}


def test_the_section_has_a_row_for_each_kind_and_a_dash_where_none_was_probed() -> None:
    scores = {"by_kind": {"side": score(0.4), "presence": score(0.6)}}
    probed = {"side": {**score(0.9), "chance": 0.25, "best_layer": 5, "penultimate": 0.85}}
    body = probe_section({"scores": scores, "blind_scores": {"by_kind": {"side": score(0.25)}}, "probe": probed}).body
    for cell in ("25.0%", "90.0% (85.0 to 95.0), layer 5", "85.0%", "40.0% (35.0 to 45.0)"):
        assert f">{cell}<" in body, cell
    assert body.count("<td class='n'>-</td>") == 4  # presence: three of the probe's, one without images


@pytest.mark.parametrize("data", list(demo.DATA))
def test_the_recipes_of_a_data_set_are_there_and_share_it(data: str) -> None:
    seeing, blind, changes = demo.DATA[data]
    ours, without = load_recipe(demo.RECIPES / seeing, changes), load_recipe(demo.RECIPES / blind, changes)
    assert ours.data == without.data and ours.data.type == data and ours.training == without.training
    assert not ours.training.node_rates and "fuser" in ours.nodes and "fuser" not in without.nodes
    assert ours.nodes["fuser"].config.score == "cosine"


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16], ids=str)
def test_the_faster_dtype_is_measured(slow: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.functional.linear

    def delayed(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1 * (rows.dtype == slow))  # of a product that takes milliseconds
        return linear(rows, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", delayed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert faster_dtype() == ("bfloat16" if slow == torch.float32 else "float32")


@pytest.mark.parametrize(
    ("milliseconds", "best"),
    [({4: 8, 2: 1, 1: 4}, 2), ({4: 8, 2: 4, 1: 1}, 1), ({4: 4, 2: 4, 1: 6}, 4)],
    ids=["half", "one", "all"],
)
def test_fewer_threads_are_taken_where_they_are_clearly_faster(
    milliseconds: dict[int, int], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, clock = torch.get_num_threads(), [0.0]

    def linear(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        clock[0] += milliseconds[torch.get_num_threads()]
        return rows

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("timeit.timeit", lambda call, number: Timer(call, timer=lambda: clock[0]).timeit(number))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert faster_threads(4) == best and torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert faster_threads(4) == 4, "a number that the user set is kept"


def test_an_interrupted_demo_goes_on_in_the_dtype_that_it_was_begun_in(tmp_path: Path) -> None:
    assert demo._begun_in(tmp_path) is None
    for dtype in ("bfloat16", "float32"):
        (tmp_path / "run.json").write_text(json.dumps({"recipe": {"decoder": {"dtype": dtype}}}))
        assert demo._begun_in(tmp_path) == dtype


@pytest.mark.nightly
def test_the_demo_runs_whole(command: Command, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pytest.importorskip("sklearn", reason="the probe needs scikit-learn")
    (world / "blind.yaml").write_text(f"extends: tiny.yaml\nname: blind\n{WITHOUT}")
    monkeypatch.setattr(demo, "RECIPES", world)
    monkeypatch.setitem(demo.DATA, "drawings", ("tiny.yaml", "blind.yaml", ["training.max_steps=6"]))
    ended = command("demo", "--output", tmp_path / "demo")
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["recipe"] == "tiny" and summary["probe"]["colour"]["accuracy"] == 1.0
    assert "linear probe" in ended.out and "what colour is it ?" in ended.out
    page = (tmp_path / "demo" / "index.html").read_text()
    assert "Beside the probe" in page and "What the fuser&#x27;s weights are worth" in page
    again = command("demo", "--output", tmp_path / "demo")
    assert again.code == 1 and "holds a demo already" in again.err
