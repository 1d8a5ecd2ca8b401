"""Every method at every published size has the published number of parameters, from its own recipe file."""

from __future__ import annotations

from pathlib import Path

import pytest
from dehvf_kit_baselines.method_table import method_table, published_recipes

import dehvf_kit
from dehvf_kit.errors import DehvfError

ROOT = Path(__file__).parents[3]
RECIPES = Path(__file__).parents[1] / "recipes"
# name: (trained by the kit, published as printed); the DEHVF paper's Tables 1 and 4
FIGURES = {
    "llama7b_clip": (4_163_328, "4.17M"),
    "llama13b_clip": (5_770_496, "5.8M"),
    "no_visual_prompts": (3_211_264, "3.22M"),
    "mean_weights": (3_870_848, "3.88M"),
    "penultimate_only": (3_870_848, "3.88M"),
    "keys_values_same": (4_146_752, "4.15M"),
    "keys_only": (4_163_328, "4.17M"),
    "values_only": (4_163_328, "4.17M"),
    "memvp_7b": (3_870_848, "3.9M"),
    "memvp_13b": (5_477_504, "5.5M"),
    "lavin_7b": (3_781_296, "3.8M"),
    "lavin_13b": (5_390_080, "5.4M"),
    "llama_adapter_7b": (1_823_808, "1.8M"),
    "llava_lora_7b": (4_395_136, "4.4M"),
}


def test_every_row_equals_the_published_figure_to_its_printed_precision() -> None:
    rows = method_table(published_recipes(ROOT))
    assert {row.name: (row.trained, row.published) for row in rows} == FIGURES
    assert all(row.matches is True for row in rows)
    assert all(row.published_in for row in rows)


def test_the_counts_term_by_term() -> None:
    """LaVIN: layers * (20 h + 10); LLaMA-Adapter's text part is the published 1.2M; LoRA 32 * 2 * 6 * (h + h)."""
    terms = {
        row.name: {f"{term.node}.{term.term}": term.count for term in row.table.terms}
        for row in method_table(RECIPES / f"{name}_7b.yaml" for name in ("lavin", "llama_adapter", "llava_lora"))
    }
    assert terms["lavin_7b"]["decoder_adapter.adapters"] == 32 * 81_930
    assert terms["lavin_7b"]["vision_adapter.adapters"] == 24 * 20_490
    assert terms["lavin_7b"]["decoder_adapter.modality"] == 2 * 4096
    prefix = terms["llama_adapter_7b"]
    assert prefix["decoder_adapter.prompts"] + prefix["decoder_adapter.gates"] == 30 * 10 * 4096 + 30 * 32 == 1_229_760
    assert prefix["projector.fc1"] + prefix["projector.fc2"] == 594_048
    lora = terms["llava_lora_7b"]
    assert lora["lora.q_proj"] + lora["lora.v_proj"] == 3_145_728 and lora["vision_adapter.maps"] == 589_824


def test_a_folder_without_recipes_is_named(tmp_path: Path) -> None:
    with pytest.raises(DehvfError, match="these recipes are not there"):
        published_recipes(tmp_path)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_checks_and_reads_back_as_itself(file: Path) -> None:
    recipe = dehvf_kit.load_recipe(file)
    assert recipe.name == file.stem and recipe.description
    assert dehvf_kit.parse_recipe(recipe.resolved(), recipe.source) == recipe


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*_easyvqa.yaml")), ids=lambda file: file.stem)
def test_the_demo_recipes_share_data_prompt_and_schedule(file: Path) -> None:
    recipe = dehvf_kit.load_recipe(file)
    parent = dehvf_kit.load_recipe(ROOT / "recipes" / "smollm2_dinov2_easyvqa.yaml")
    assert (recipe.data, recipe.generation, recipe.decoder) == (parent.data, parent.generation, parent.decoder)
    assert recipe.vision["vision"].image == parent.vision["vision"].image
    assert recipe.training == parent.training
