"""Recipes of earlier formats are brought to the newest, one step after the other."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import raw_recipe

import dehvf_kit
from dehvf_kit.recipe import migrations, parser
from dehvf_kit.recipe.migrations import FORMAT, STEPS, migrate


def rename(old: str, new: str) -> migrations.Step:
    return lambda raw: {new if key == old else key: value for key, value in raw.items()}


def test_every_earlier_format_has_a_step() -> None:
    assert set(STEPS) == set(range(1, FORMAT))


def test_steps_run_in_order_and_leave_what_was_given() -> None:
    raw: dict[str, Any] = {"a": 1}
    steps = {1: rename("a", "b"), 2: rename("b", "c")}
    assert migrate(raw, 1, 3, steps) == {"c": 1, "format": 3}
    assert migrate({"b": 1, "format": 2}, 2, 3, steps) == {"c": 1, "format": 3}
    assert migrate(raw, 3, 3, steps) == raw == {"a": 1}


def test_a_recipe_of_an_earlier_format_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_recipe()
    expected = dehvf_kit.parse_recipe(raw)
    old = {"language_model" if key == "decoder" else key: value for key, value in raw.items()}
    monkeypatch.setitem(STEPS, 1, rename("language_model", "decoder"))
    monkeypatch.setattr(parser, "FORMAT", 2)
    for recipe in (old, {**old, "format": 1}, {**raw, "format": 2}):
        assert dehvf_kit.parse_recipe(recipe) == expected
    with pytest.raises(dehvf_kit.RecipeError, match="language_model"):
        dehvf_kit.parse_recipe({**old, "format": 2})
    with pytest.raises(dehvf_kit.RecipeError, match="upgrade dehvf-kit"):
        dehvf_kit.parse_recipe({**raw, "format": 3})
