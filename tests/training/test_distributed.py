"""Two processes on the CPU (gloo) end where one process does: losses, weights, files, counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dehvf_kit
from dehvf_kit.training.run import train

SETTINGS = ["graph.injector.dropout=0", "training.max_steps=12", "training.cache_features=true"]
LAUNCHES = {
    "ddp": ({}, ["training.batch_size=1", "training.gradient_accumulation=2"]),
    "fsdp2": ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, ["training.batch_size=2"]),
}


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, with batches of 4."""
    folder = tmp_path_factory.mktemp("alone")
    train(dehvf_kit.load_recipe(world / "tiny.yaml", SETTINGS), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module", params=list(LAUNCHES))
def together(
    request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same global batch in two processes, started by torchrun, with a feature cache of their own."""
    environment, settings = LAUNCHES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    environment = {**os.environ, **environment, "DEHVF_KIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "dehvf_kit", "train", world / "tiny.yaml", *SETTINGS, *settings, "--output", folder / "run"]
    ended = subprocess.run(
        [*launcher, *map(str, command)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, ended


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_losses_and_weights_are_those_of_one_process(alone: Path, together: tuple) -> None:
    one, two = losses(alone), losses(together[0] / "run")
    print("worst loss difference", max(abs(a - b) for a, b in zip(one, two, strict=True)))
    before, after = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (alone, together[0] / "run"))
    worst = {name: (before[name] - after[name]).abs().max().item() for name in before}
    print("worst weights", sorted(worst.items(), key=lambda item: -item[1])[:6])
    assert len(one) == 12
    assert one == pytest.approx(two, rel=0, abs=1e-5)
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-5)
