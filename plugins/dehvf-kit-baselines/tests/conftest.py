"""Lets the tests of this folder import `baseline_helpers`, keeps torch at one thread, and trains an adapter on the tiny world."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli.commands import command, wide  # noqa: F401 - fixtures
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

from dehvf_kit.recipe.recipe import load_recipe
from dehvf_kit.training.run import train

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """DEHVF with a vision adapter, trained for two steps."""
    changes = ["training.max_steps=2", "graph.vision_adapter.type=parallel", "graph.vision_adapter.bottleneck_size=2"]
    return train(load_recipe(world / "tiny.yaml", changes), tmp_path_factory.mktemp("reproduction") / "run").adapter
