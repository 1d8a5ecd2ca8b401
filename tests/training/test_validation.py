"""Training scored on the validation split: the best adapter kept, a run that ends early, one that is resumed, the test score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dehvf_kit
from dehvf_kit.data.metrics.exact_match import exact_match
from dehvf_kit.errors import AdapterError, DataError, RecipeError, TrainingError
from dehvf_kit.evaluation.answers import answer
from dehvf_kit.recipe.recipe import Recipe
from dehvf_kit.training.run import Progress, TrainResult, train
from dehvf_kit.training.trainer import DehvfTrainer

SCORED = ["data.validation=0.25", "training.eval_steps=3", "training.base_learning_rate=2", "training.epochs=3"]


def recipe_of(world: Path, *settings: str) -> Recipe:
    return dehvf_kit.load_recipe(world / "tiny.yaml", [*SCORED, *settings])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dehvf_kit.load(folder).named_trainable_parameters()


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def scored(world: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(recipe_of(world, "training.test_at_end=true"), tmp_path_factory.mktemp("scored") / "run")


def test_the_adapter_is_the_one_of_the_best_score(scored: TrainResult, world: Path) -> None:
    rows = {row["step"]: row for row in scored.log if "eval_score" in row}
    assert list(rows) == [3, 6, 9, 12, 15] and scored.best is not None
    assert all(row["eval_loss"] > 0 for row in rows.values())
    step, score = scored.best
    assert score == max(row["eval_score"] for row in rows.values()) and step == min(
        number for number, row in rows.items() if row["eval_score"] == score
    )
    assert same(scored.adapter, scored.adapter.parent / f"checkpoints/checkpoint-{step}")
    data, model = recipe_of(world).data, dehvf_kit.load(scored.adapter)
    for split, figure in (("validation", score), ("test", scored.test_score)):
        assert exact_match(answer(model, data.samples(split))).headline.value == figure
    assert [json.loads(line) for line in (scored.adapter.parent / "log.jsonl").read_text().splitlines()] == scored.log


def test_a_run_that_its_minutes_end_is_scored_at_its_end(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr("dehvf_kit.training.callbacks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    run = train(recipe_of(world, "training.eval_steps=100", "training.max_minutes=1", "training.save_steps=100"), tmp_path / "run")
    assert 1 < run.steps < 15 and run.best is not None and run.best[0] == run.steps
    assert same(run.adapter, tmp_path / f"run/checkpoints/checkpoint-{run.steps}")


def test_a_run_without_a_score_keeps_its_last_weights_and_says_so(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(DehvfTrainer, "_determine_best_metric", lambda *_, **__: False)
    run = train(recipe_of(world, "training.max_steps=2"), tmp_path / "run")
    assert same(run.adapter, tmp_path / "run/checkpoints/checkpoint-2") and "no step has a score" in caplog.text


@pytest.mark.nightly
def test_scores_do_not_change_the_training(scored: TrainResult, world: Path, tmp_path: Path) -> None:
    unscored = train(recipe_of(world, "training.eval_steps=null"), tmp_path / "run")
    last = train(recipe_of(world, "training.keep_best=false"), tmp_path / "last")
    assert same(unscored.adapter, last.adapter)


def killed_at(step: int) -> Progress:
    def progress(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == ("training", step):
            raise KeyboardInterrupt

    return progress


def figures(run: TrainResult) -> list[tuple[int, float, float]]:
    return [(row["step"], row["eval_score"], row["eval_loss"]) for row in run.log if "eval_score" in row]


@pytest.mark.parametrize("killed", [7, pytest.param(13, marks=pytest.mark.nightly)])
def test_a_resumed_run_keeps_the_best(scored: TrainResult, world: Path, tmp_path: Path, killed: int) -> None:
    recipe = recipe_of(world, "training.test_at_end=true", "training.save_steps=2")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", progress=killed_at(killed))
    (tmp_path / "run").rename(tmp_path / "moved")
    resumed = train(recipe, tmp_path / "moved", resume=True)
    assert (resumed.best, resumed.test_score) == (scored.best, scored.test_score) and same(resumed.adapter, scored.adapter)
    assert figures(resumed) == figures(scored)
    finished = train(recipe, tmp_path / "moved", resume=True)
    assert (finished.best, finished.test_score) == (scored.best, scored.test_score)


@pytest.mark.nightly
def test_patience_ends_a_run_and_is_kept_by_resuming(world: Path, tmp_path: Path) -> None:
    # The rate is too small to change a weight, so that the loss stays what it is at the first step.
    settings = ["training.patience=2", "training.metric_for_best=loss", "training.base_learning_rate=1e-30"]
    recipe = recipe_of(world, *settings, "training.eval_steps=1", "training.save_steps=1")
    whole = train(recipe, tmp_path / "whole")
    losses = [row["eval_loss"] for row in whole.log if "eval_loss" in row]
    assert whole.best == (1, losses[0]) and whole.steps == 3 and len(set(losses)) == 1
    for name, lost in (("before", ["adapter", f"checkpoints/checkpoint-{whole.steps}"]), ("after", ["adapter"])):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        for folder in lost:
            shutil.rmtree(tmp_path / name / folder)
        resumed = train(recipe, tmp_path / name, resume=True)
        assert (resumed.steps, resumed.best) == (whole.steps, whole.best) and same(resumed.adapter, whole.adapter), name
    shutil.rmtree(tmp_path / "after/adapter")
    (tmp_path / f"after/checkpoints/checkpoint-{whole.best[0]}/adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match="checkpoint of the best score cannot be used: 'adapter_model.safetensors' was altered"):
        train(recipe, tmp_path / "after", resume=True)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["data.validation=0"], DataError, "eval_steps: the data set 'jsonl' has no validation split; .*data.validation=0.1"),
        (["data.test=null", "training.test_at_end=true"], DataError, "test_at_end: .*no test split beside the validation split"),
        (["training.eval_steps=0"], RecipeError, "given 0; wants a number of steps"),
        (["training.eval_steps=null", "training.patience=1"], RecipeError, "patience .1. counts scores"),
    ],
)
def test_what_cannot_be_scored_is_refused(world: Path, tmp_path: Path, settings: list[str], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        train(recipe_of(world, *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_begins_with_another_adapter(scored: TrainResult, world: Path, tmp_path: Path) -> None:
    start = f"training.init_from={scored.adapter}"
    begun = train(recipe_of(world, start, "training.base_learning_rate=1e-12", "training.max_steps=1"), tmp_path / "run")
    first, second = weights(begun.adapter), weights(scored.adapter)
    assert all(torch.allclose(first[name], second[name], atol=1e-7) for name in first)
    other = recipe_of(world, start, "graph.fuser.num_heads=1")
    with pytest.raises(AdapterError, match=r"init_from: .* graph.fuser.num_heads=2, this one 1; begin with an adapter of the same"):
        train(other, tmp_path / "other")
    with pytest.raises(AdapterError, match="there is no such folder"):
        train(recipe_of(world, "training.init_from=nowhere"), tmp_path / "missing")
