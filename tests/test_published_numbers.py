"""Every published parameter count that a recipe of ours covers comes out to its printed precision, from its own file.

The figures and the derivation at 7B stand here a second time, so that neither a recipe nor a formula can drift unseen.
Sources: DEHVF, Tables 1 and 4; MemVP's count is the one DEHVF prints beside its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import count

from dehvf_kit.costs.parameters import agrees, parameter_table
from dehvf_kit.model.builder import build_nodes
from dehvf_kit.recipe.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
# recipe: (published, trained by the kit, parameters the published count includes and nothing uses)
ROWS = {
    "llama7b_clip.yaml": ("4.17M", 4_163_328, 8_192),
    "ablations/no_visual_prompts.yaml": ("3.22M", 3_211_264, 8_192),
    "ablations/mean_weights.yaml": ("3.88M", 3_870_848, 8_192),
    "ablations/penultimate_only.yaml": ("3.88M", 3_870_848, 8_192),
    "ablations/keys_values_same.yaml": ("4.15M", 4_146_752, 8_192),
    "ablations/keys_only.yaml": ("4.17M", 4_163_328, 8_192),
    "ablations/values_only.yaml": ("4.17M", 4_163_328, 8_192),
    "ablations/penultimate_only_13b.yaml": ("5.5M", 5_477_504, 10_240),
    "llama13b_clip.yaml": ("5.8M", 5_770_496, 10_240),
}
TERMS_7B = {
    ("vision_adapter", "maps"): 24 * 2 * 1024 * 12,
    ("layer_query", "embeddings"): (32 + 2) * 64,
    ("layer_query", "mlp"): 128 * 128 + 128 + 128 * 64 + 64,
    ("projector", "fc1"): 1024 * 128 + 128,
    ("projector", "fc2"): 128 * 4096 + 4096,
    ("position", "keys"): 320 * 4096,
    ("position", "values"): 320 * 4096,
    ("fuser", "input"): 1024 * 64 + 64,
    ("fuser", "blocks"): 4 * 49_984,
}


@pytest.mark.parametrize("name", ROWS)
def test_the_published_count_comes_out(name: str) -> None:
    published, trained, unused = ROWS[name]
    recipe = load_recipe(RECIPES / name)
    table = parameter_table(recipe.check(), recipe.published)
    assert (recipe.published.parameters, table.unused) == (published, unused)
    assert table.trainable == trained
    assert table.matches is True
    assert agrees(trained + unused, published)


@pytest.mark.parametrize("name", ROWS)
def test_the_built_modules_hold_as_many(name: str) -> None:
    graph = load_recipe(RECIPES / name).check()
    terms = parameter_table(graph).terms
    for node, module in build_nodes(graph).items():
        assert sum(term.count for term in terms if term.node == node) == count(module), node


def test_the_7b_count_term_by_term() -> None:
    terms = parameter_table(load_recipe(RECIPES / "llama7b_clip.yaml").check()).terms
    assert {(term.node, term.term): term.count for term in terms} == TERMS_7B
    assert sum(TERMS_7B.values()) + 8_192 == 4_171_520


def test_memvp_is_the_penultimate_layer_alone() -> None:
    """MemVP's own paper prints one digit less."""
    recipe = load_recipe(RECIPES / "ablations" / "penultimate_only.yaml")
    assert agrees(parameter_table(recipe.check(), recipe.published).as_published, "3.9M")


def test_the_printed_420_slots_at_13b_would_not_give_the_printed_count() -> None:
    """Why the 13B recipe has 400 slots: Table 5 says 420, Table 1's count says 400."""
    recipe = load_recipe(RECIPES / "llama13b_clip.yaml", ["graph.position.num_slots=420"])
    table = parameter_table(recipe.check(), recipe.published)
    assert not table.matches
    assert agrees(table.as_published, "5.99M")


def test_every_recipe_that_names_a_figure_is_in_the_table() -> None:
    named = {str(file.relative_to(RECIPES)) for file in RECIPES.rglob("*.yaml") if "published: {" in file.read_text()}
    named |= {str(file.relative_to(RECIPES)) for file in RECIPES.rglob("*.yaml") if "published:\n" in file.read_text()}
    assert named == set(ROWS)
