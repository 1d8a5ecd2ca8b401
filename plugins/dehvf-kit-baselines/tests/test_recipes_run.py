"""Every recipe of the plugin is built and asked a question on the meta device, as `build` and `plan` do."""

from __future__ import annotations

from pathlib import Path

import pytest

from dehvf_kit import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.nightly
@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_it_is_built_and_its_question_counted(file: Path) -> None:
    symbolic = pytest.importorskip("dehvf_kit_plan.symbolic")
    count = symbolic.count_decoding(load_recipe(file), batch=1, tokens=20)
    assert count.graph + count.prompt > count.token > 0
