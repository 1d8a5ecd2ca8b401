"""recipes/README.md names every recipe, and its example does what it says."""

from __future__ import annotations

import re
from pathlib import Path

from dehvf_kit.recipe.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
PAGE = (RECIPES / "README.md").read_text()


def test_every_recipe_is_named() -> None:
    names = {str(file.relative_to(RECIPES)) for file in RECIPES.rglob("*.yaml")}
    assert not {name for name in names if f"`{name}`" not in PAGE}


def test_its_example_extends_as_it_says(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "two_blocks.yaml"
    file.write_text(example.replace("extends: ", f"extends: {RECIPES}/"))
    recipe, parent = load_recipe(file), load_recipe(RECIPES / "llama7b_clip.yaml")
    recipe.check()
    assert recipe.published is None
    fuser, inherited = recipe.nodes["fuser"].config, parent.nodes["fuser"].config
    assert fuser == inherited.model_copy(update={"num_blocks": 2})
    assert recipe.nodes["grouper"].config == type(recipe.nodes["grouper"].config)()


def test_its_overrides_are_taken() -> None:
    (line,) = re.findall(r"`dehvf-kit build recipes/(.*?)`", PAGE)
    name, *overrides = line.split()
    recipe = load_recipe(RECIPES / name, overrides)
    assert (recipe.nodes["fuser"].config.num_blocks, recipe.decoder.dtype) == (2, "bfloat16")
