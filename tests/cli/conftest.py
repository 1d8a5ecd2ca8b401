"""A recipe to run commands on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import raw_recipe
from training.conftest import tokenizer, world  # noqa: F401 - fixtures


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe's file, alone in the current folder."""
    monkeypatch.chdir(tmp_path)
    file = Path("tiny.yaml")
    file.write_text(yaml.safe_dump(raw_recipe(), sort_keys=False))
    return file
