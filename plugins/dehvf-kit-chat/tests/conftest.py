"""Adapters on the tiny world of the training tests: one whose weights depend on the image, one that reads no image."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli.commands import command, wide  # noqa: F401 - fixtures
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

sys.path.append(str(Path(__file__).parent))
from chat_helpers import save  # noqa: E402

BLIND = [f"graph.{node}=null" for node in ("grouper", "layer_query", "projector", "fuser")]


@pytest.fixture(scope="session")
def adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return save(world, tmp_path_factory.mktemp("chat") / "adapter")


@pytest.fixture(scope="session")
def blind(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return save(world, tmp_path_factory.mktemp("chat") / "blind", *BLIND)
