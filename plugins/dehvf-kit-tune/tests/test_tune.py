"""A search over a tiny world: grid and TPE, what is refused, an interrupted study that is gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.commands import Command
from dehvf_kit_tune.search import axes, grid
from dehvf_kit_tune.tuning import Tuning

from dehvf_kit.errors import DehvfError, RecipeError
from dehvf_kit.recipe.recipe import load_recipe

SHORT = ["data.validation=0.25", "training.max_steps=2", "training.eval_steps=2", "training.metric_for_best=loss"]


def test_what_search_reads() -> None:
    rate, batch, size = axes(["training.base_learning_rate=2e-3..0.2:log", "training.batch_size=4,8", "training.seed=0..3"])
    assert rate.distribution.log and rate.ends == (0.002, 0.2) and size.ends == (0, 3)
    assert batch.values == (4, 8) and batch.override(8) == "training.batch_size=8"
    assert list(grid(axes(["a=1,2", "b=x,null"]))) == [{"a": a, "b": b} for a in (1, 2) for b in ("x", None)]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["training.seed"], "wants KEY=A,B,C or KEY=LOW..HIGH"),
        (["training.seed=3..1"], "low.*high"),
        (["training.seed=a..b"], "training.seed=a..b"),
        (["a=1", "a=2"], "'a' is named twice"),
    ],
)
def test_searches_that_cannot_be_read(texts: list[str], message: str) -> None:
    with pytest.raises(DehvfError, match=message):
        axes(texts)


def test_fields_and_values_are_checked_before_the_first_trial(world: Path, tmp_path: Path) -> None:
    for text, error in (("training.seeed=1,2", RecipeError), ("training.batch_size=0..4", RecipeError)):
        with pytest.raises(error):
            Tuning(world / "tiny.yaml", SHORT, axes([text]), tmp_path / "study")
    with pytest.raises(DehvfError, match="'training.seed' is a range, of which a grid has no points"):
        Tuning(world / "tiny.yaml", SHORT, axes(["training.seed=0..3"]), tmp_path / "study", "grid", None)
    assert not (tmp_path / "study").exists()


def silent(*_: object) -> None:
    pass


@pytest.mark.nightly
def test_an_interrupted_grid_goes_on(world: Path, tmp_path: Path) -> None:
    space = axes(["training.base_learning_rate=0.2,20"])

    def tuning() -> Tuning:
        return Tuning(world / "tiny.yaml", SHORT, space, tmp_path / "study", "grid", None)

    def killed(stage: str, *_: object) -> None:
        if stage == "trial 2 of 2: training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuning().run(killed)
    assert [one.params["training.base_learning_rate"] for one in tuning().finished] == [0.2]
    again = tuning()
    again.run(silent)
    assert [one.params["training.base_learning_rate"] for one in again.finished] == [0.2, 20]
    assert again.best is not None and again.best.value == min(one.value for one in again.finished)
    assert {one.user_attrs["folder"] for one in again.finished} == {"trial-0", "trial-1"}
    with pytest.raises(DehvfError, match="holds a study of another recipe or search"):
        Tuning(world / "tiny.yaml", SHORT, axes(["training.seed=0,1"]), tmp_path / "study", "grid", None)


@pytest.mark.nightly
def test_the_command_writes_the_best_recipe(world: Path, tmp_path: Path, command: Command) -> None:
    words = ["tune", world / "tiny.yaml", *SHORT, "--search", "training.base_learning_rate=0.01..20:log", "--trials", 2]
    words += ["--output", tmp_path / "study", "--json"]
    first = json.loads(command(*words).out)
    assert len(first["trials"]) == 2 and first["loss"] == min(one["loss"] for one in first["trials"])
    best = load_recipe(tmp_path / "study/best.yaml")
    assert best.training.base_learning_rate == pytest.approx(first["best"]["training.base_learning_rate"])
    assert json.loads(command(*words).out) == first, "a finished study trains nothing"
