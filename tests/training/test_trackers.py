"""`training.report_to` decides where figures go."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import pytest

from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.sections import Tracker, TrainingConfig
from dehvf_kit.training.trainer import trackers, training_arguments


@pytest.fixture(params=[(), ("tensorboard",), ("tensorboard", "wandb")], ids=str)
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """These trackers are installed and no others."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in request.param else None)
    return request.param


def test_auto_takes_tensorboard_alone(installed: tuple[str, ...]) -> None:
    assert trackers("auto") == (["tensorboard"] if "tensorboard" in installed else [])
    assert trackers("none") == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_one_that_is_named_must_be_there(installed: tuple[str, ...], name: str) -> None:
    if name in installed:
        assert trackers(name) == [name]
        return
    with pytest.raises(DehvfError, match=rf"training.report_to: {name} is not installed; pip install .*report_to=none"):
        trackers(name)


def test_every_tracker_of_transformers_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(get_args(Tracker)) == set(INTEGRATION_TO_CALLBACK)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    several = TrainingConfig(report_to=["mlflow", "tensorboard", "mlflow"])
    assert trackers(several.report_to) == ["mlflow", "tensorboard"]


def test_the_recipes_word_reaches_the_trainer(tmp_path: Path) -> None:
    assert training_arguments(TrainingConfig(report_to="none"), tmp_path, 8).report_to == []
    assert training_arguments(TrainingConfig(report_to="tensorboard"), tmp_path, 8).report_to == ["tensorboard"]
