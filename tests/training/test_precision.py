"""float16 with loss scaling: its overflows told apart from broken steps; what `auto` is; a warning where scaling is missing."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from broken_runs import Broken, inf_backward, nan_forward
from torch import Tensor

from dehvf_kit.adapter.files import read_config, read_weights
from dehvf_kit.errors import DehvfError, TrainingError
from dehvf_kit.recipe import sections
from dehvf_kit.recipe.recipe import load_recipe, unscaled
from dehvf_kit.recipe.sections import precision_here
from dehvf_kit.training.run import train

FLOAT16 = ("training.precision=float16", "decoder.dtype=float16")


def test_an_overflow_under_the_loss_scale_is_no_broken_step(world: Path, tmp_path: Path) -> None:
    settings = (*FLOAT16, "training.max_bad_steps=1", "training.max_steps=5", "training.save_steps=2", "training.warmup_epochs=0")
    run = Broken(world, {1, 2}, inf_backward, *settings)
    result = run.train(tmp_path / "run")
    assert result.overflowed == (1, 2) and result.skipped == ()
    assert [row["loss_scale"] for row in result.log if "overflowed_step" in row] == [65536, 32768]
    assert all(torch.equal(run.weights[2][name], weight) for name, weight in run.weights[1].items()), "not taken"
    assert any(not torch.equal(run.weights[3][name], weight) for name, weight in run.weights[2].items()), "taken"
    rows = [row for row in result.log if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5], "their losses are right"
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [0.003125 * (1 + math.cos(math.pi * n / 5)) / 2 for n in range(5)]
    )
    state = torch.load(tmp_path / "run/checkpoints/checkpoint-4/scaler.pt", weights_only=True)
    assert state["scale"] == 16384


@pytest.mark.nightly
def test_a_resumed_run_goes_on_with_its_loss_scale(world: Path, tmp_path: Path) -> None:
    settings = (*FLOAT16, "training.max_steps=5", "training.save_steps=2")
    Broken(world, {1, 2}, inf_backward, *settings).train(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    for name in ("adapter", "checkpoints/checkpoint-5"):
        shutil.rmtree(tmp_path / "cut" / name)
    train(load_recipe(world / "tiny.yaml", settings), tmp_path / "cut", resume=True)
    whole, resumed = (read_weights(tmp_path / name / "adapter") for name in ("run", "cut"))
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


@pytest.mark.nightly
def test_the_loss_is_scaled_and_the_gradients_are_those_of_float32(world: Path, tmp_path: Path) -> None:
    """The hook sees gradients before the scale is taken off, the optimiser after it. Worst error seen: 0.4%."""
    seen: dict[str, Tensor] = {}
    for given in ("float32", "float16"):

        def keep(output: Tensor, into: str = given) -> None:
            output.register_hook(lambda gradient: seen.update({into: gradient.float()}))

        Broken(world, {1}, keep, f"training.precision={given}", "training.max_steps=1").train(tmp_path / given)
    assert float((seen["float16"] / 65536 - seen["float32"]).norm() / seen["float32"].norm()) < 0.02


def test_a_loss_that_is_not_finite_is_broken_whatever_the_scale(world: Path, tmp_path: Path) -> None:
    result = Broken(world, {3}, nan_forward, *FLOAT16, "training.max_steps=3").train(tmp_path / "run")
    assert result.skipped == (3,) and 3 not in result.overflowed
    (row,) = [row for row in result.log if "skipped_step" in row]
    assert row["reason"] == "the loss is nan" and row["first"] == "the output of 'layer_query'"


@pytest.mark.nightly
def test_gradients_that_no_scale_makes_finite_end_the_run(world: Path, tmp_path: Path) -> None:
    broken = Broken(world, set(range(1, 99)), inf_backward, *FLOAT16, "training.max_bad_steps=2")
    with pytest.raises(TrainingError, match="step 18 skipped: .* gradients are not finite"):
        broken.train(tmp_path / "run")


@pytest.mark.parametrize(
    ("gpu", "fast", "chosen"),
    [(True, True, "bfloat16"), (True, False, "float16"), (False, True, "bfloat16"), (False, False, "float32")],
)
def test_auto_is_bfloat16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, gpu: bool, fast: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(sections, "bfloat16_is_fast", lambda: fast)
    assert precision_here("auto") == chosen and precision_here("float16") == "float16"


def test_an_emulated_bfloat16_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not sections.bfloat16_is_fast()


@pytest.mark.nightly
def test_a_run_writes_down_what_auto_was(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(world / "tiny.yaml", ["training.precision=auto", "training.max_steps=4", "training.save_steps=2"])
    monkeypatch.setattr(sections, "bfloat16_is_fast", lambda: True)
    result = train(recipe, tmp_path / "run")
    assert read_config(result.adapter)["recipe"]["training"]["precision"] == "bfloat16"
    shutil.rmtree(result.adapter)
    monkeypatch.setattr(sections, "bfloat16_is_fast", lambda: False)
    with pytest.raises(TrainingError, match="training.precision: 'bfloat16' then, 'float32' now"):
        train(recipe, tmp_path / "run", resume=True)


def test_a_launcher_with_another_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would take the launcher's, and the adapter's recipe would name another."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert precision_here("bfloat16") == "bfloat16"
    for given in ("float32", "float16"):
        with pytest.raises(DehvfError, match=f'mixed_precision bf16, the recipe for training.precision={given}.*"no"'):
            precision_here(given)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["decoder.dtype=float16"], "decoder: "),
        (["decoder.dtype=float16", "vision.dtype=float16"], "decoder and vision: "),
        (["vision.dtype=float16"], "vision: "),
        (["vision.dtype=float16", "graph.vision_adapter=null"], ""),
        (["decoder.dtype=float16", "training.precision=float16"], ""),
        (["decoder.dtype=float16", "training.precision=bfloat16"], ""),
        (["decoder.dtype=bfloat16"], ""),
    ],
)
def test_float16_weights_without_loss_scaling_are_named(settings: list[str], named: str) -> None:
    recipe = load_recipe("recipes/llama7b_clip.yaml", ["decoder.dtype=auto", "training.precision=float32", *settings])
    warning = unscaled(recipe, recipe.decoder.dtype)
    assert warning.startswith(named) and bool(warning) == bool(named)
    assert not named or "without loss scaling" in warning and "training.precision=float16" in warning


@pytest.mark.nightly
def test_two_processes_share_the_loss_scale(world: Path, tmp_path: Path) -> None:
    """Each process's loss is multiplied by their number before gradients are averaged, so scales overflow sooner."""
    settings = [*FLOAT16, "graph.injector.dropout=0", "training.max_steps=4", "training.warmup_epochs=0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dehvf_kit", "train"]
    command += [str(world / "tiny.yaml"), *settings, "training.batch_size=2", "-o", str(tmp_path / "two")]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "two/log.jsonl").read_text().splitlines()]
    overflowed = [row["overflowed_step"] for row in rows if "overflowed_step" in row]
    assert overflowed == list(range(1, len(overflowed) + 1)) and len(overflowed) < 4
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
