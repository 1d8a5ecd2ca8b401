"""Adapters on the tiny world of the training tests: one whose weights depend on the picture, one that reads no picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import randomise
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

import dehvf_kit

BLIND = [f"graph.{node}=null" for node in ("grouper", "layer_query", "projector", "fuser")]
NEW_TOKENS = 12


def save(world: Path, folder: Path, *overrides: str, seed: int = 7) -> Path:  # noqa: F811
    """An adapter with random weights."""
    recipe = dehvf_kit.load_recipe(world / "tiny.yaml", [f"generation.max_new_tokens={NEW_TOKENS}", *overrides])
    model = dehvf_kit.build(recipe)
    randomise(model.nodes, seed)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return save(world, tmp_path_factory.mktemp("chat") / "adapter")


@pytest.fixture(scope="session")
def blind(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return save(world, tmp_path_factory.mktemp("chat") / "blind", *BLIND)
