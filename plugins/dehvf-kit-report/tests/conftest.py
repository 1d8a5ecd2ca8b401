"""Runs on the tiny world of the training tests: DEHVF with its answers kept, and one that reads no image."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.commands import builtins_alone, command, own_plugins, wide  # noqa: F401 - fixtures
from cli.conftest import recipe  # noqa: F401 - a fixture
from training.conftest import tokenizer, world  # noqa: F401 - fixtures
from typer.testing import CliRunner

from dehvf_kit.cli.main import app
from dehvf_kit.recipe.recipe import load_recipe
from dehvf_kit.training.run import train


@pytest.fixture(scope="session")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Eight steps, and the answers where the page looks for them."""
    folder = tmp_path_factory.mktemp("report") / "run"
    train(load_recipe(world / "tiny.yaml", ["training.max_steps=8"]), folder)
    words = ["eval", str(folder / "adapter"), "--output", str(folder / "predictions.jsonl")]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder


@pytest.fixture(scope="session")
def blind(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Position embeddings alone, one step, no answers kept."""
    none = [f"graph.{node}=null" for node in ("grouper", "layer_query", "projector", "fuser")]
    folder = tmp_path_factory.mktemp("report") / "blind"
    train(load_recipe(world / "tiny.yaml", [*none, "training.max_steps=1"]), folder)
    return folder
