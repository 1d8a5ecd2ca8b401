"""The tiny world of the training tests, and a second method beside its recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.commands import wide  # noqa: F401 - a fixture
from training.conftest import tokenizer, world  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def recipes(world: Path) -> list[Path]:  # noqa: F811
    """DEHVF and mean weights on the tiny world, 12 steps each."""
    shorter = "training: {epochs: 2, warmup_epochs: 0.5, cache_features: true}\n"
    files = [world / "dehvf.yaml", world / "mean.yaml"]
    files[0].write_text(f"extends: tiny.yaml\nname: dehvf\n{shorter}")
    files[1].write_text(f"extends: tiny.yaml\nname: mean\n{shorter}graph: {{layer_query: null, fuser: {{type: mean}}}}\n")
    return files
