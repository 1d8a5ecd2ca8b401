"""A search over a tiny world: grid and TPE, what is refused, an interrupted study that is gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli.commands import Command, at_most
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


def test_one_study_is_worked_on_by_one_process(world: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    hold = (
        "import fcntl, time; f = open('study/.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], cwd=tmp_path, stdout=-1, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(DehvfError, match="another run .* is working in it"):
            Tuning(world / "tiny.yaml", SHORT, axes(["training.seed=0..3"]), tmp_path / "study")
        other.kill()
    assert not (tmp_path / "study/study.db").exists()


def test_a_study_that_is_no_database(world: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study.db").write_text("not a database" * 100)
    with pytest.raises(DehvfError, match=r"study.db: the study cannot be read or written: .*file is not a database"):
        Tuning(world / "tiny.yaml", SHORT, axes(["training.seed=0..3"]), tmp_path / "study")


def test_a_full_disk_ends_the_study_and_no_trial(world: Path, tmp_path: Path) -> None:
    tuning = Tuning(world / "tiny.yaml", SHORT, axes(["training.seed=0..3"]), tmp_path / "study", trials=1)
    with at_most((tmp_path / "study/study.db").stat().st_size - 4096), pytest.raises(DehvfError, match="cannot be"):
        tuning.run(silent)
    tuning = Tuning(world / "tiny.yaml", SHORT, axes(["training.seed=0..3"]), tmp_path / "study", trials=1)
    assert not tuning.finished


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
