"""How long the command line and the package take to start, each in a fresh interpreter, and a 7B recipe to be built on meta."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

RECIPES = Path(__file__).parents[1] / "recipes"
COMMANDS = {
    "python alone": ["-c", "pass"],
    "import dehvf_kit": ["-c", "import dehvf_kit"],
    "dehvf-kit --help": ["-m", "dehvf_kit", "--help"],
    "dehvf-kit build --help": ["-m", "dehvf_kit", "build", "--help"],
    "dehvf-kit build llama7b_clip.yaml": ["-m", "dehvf_kit", "build", str(RECIPES / "llama7b_clip.yaml")],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_start(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark.group = "start-up, fresh interpreter"
    command = [sys.executable, *COMMANDS[name]]
    rounds = 3 if name.endswith(".yaml") else 5
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=rounds, warmup_rounds=1)
