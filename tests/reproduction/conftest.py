"""A trained adapter on the tiny world of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

from dehvf_kit.recipe.recipe import load_recipe
from dehvf_kit.training.run import train


@pytest.fixture(scope="session")
def adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """DEHVF with a vision adapter, two steps."""
    changes = ["training.max_steps=2", "graph.vision_adapter.type=parallel", "graph.vision_adapter.bottleneck_size=2"]
    return train(load_recipe(world / "tiny.yaml", changes), tmp_path_factory.mktemp("reproduction") / "run").adapter
