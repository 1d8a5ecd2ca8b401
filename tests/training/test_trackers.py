"""`training.report_to` decides where figures go."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import pytest
import transformers
from helpers import raw_recipe

import dehvf_kit
from dehvf_kit import parse_recipe
from dehvf_kit.errors import DehvfError, RecipeError
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


@pytest.mark.parametrize(
    ("section", "place", "words"),
    [
        (
            {"report_to": "tensorbord"},
            "report_to",
            ["did you mean 'tensorboard'", "One of: auto, azure_ml", "none", "wandb; or a list"],
        ),
        ({"report_to": ["wandb", "x"]}, "report_to.1", ["given 'x'. One of: azure_ml"]),
        ({"eval_steps": "never"}, "eval_steps", ["given 'never'. One of: epoch; or a whole number"]),
    ],
)
def test_a_field_of_several_kinds_has_one_message(section: dict[str, object], place: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as said:
        parse_recipe(raw_recipe(training=section))
    (fault,) = said.value.faults
    assert fault.path == f"training.{place}" and all(word in fault.message for word in words), fault


def test_the_recipes_word_reaches_the_trainer(tmp_path: Path) -> None:
    assert training_arguments(TrainingConfig(report_to="none"), tmp_path, 8).report_to == []
    assert training_arguments(TrainingConfig(report_to="tensorboard"), tmp_path, 8).report_to == ["tensorboard"]


def test_a_variable_that_accelerate_cannot_read_is_one_error(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(_: object) -> None:
        raise ValueError("invalid truth value x")

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", unreadable)
    with pytest.raises(DehvfError, match="Trainer cannot begin: invalid truth value x; look at the environment's"):
        dehvf_kit.train(dehvf_kit.load_recipe(world / "tiny.yaml", ["training.max_steps=1"]), tmp_path / "run")
