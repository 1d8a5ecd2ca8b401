"""The tiny world of the training tests, and an adapter on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_files.ground import Ground
from helpers import randomise
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

import dehvf_kit
from dehvf_kit.model.builder import build


@pytest.fixture(scope="session")
def pristine(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A sound adapter, which no case may change."""
    folder = tmp_path_factory.mktemp("pristine") / "adapter"
    model = build(dehvf_kit.load_recipe(world / "tiny.yaml"))
    randomise(model.nodes)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def ground(world: Path, pristine: Path, tmp_path: Path) -> Ground:  # noqa: F811
    return Ground(tmp_path, world, pristine)
