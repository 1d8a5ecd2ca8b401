"""The baselines' parameters by formula are those published, those of our recipes, and what `plan` prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from dehvf_kit_baselines.cost_formulas import baseline_costs, mixture_adapter
from dehvf_kit_baselines.reproduction.tables import SIZES
from dehvf_kit_plan.plan import Workload, baseline_rows

import dehvf_kit
from dehvf_kit.costs.parameters import agrees
from dehvf_kit.model.builder import build_on_meta

ABLATION = Path(__file__).parents[3] / "recipes" / "ablations" / "penultimate_only.yaml"


@pytest.mark.parametrize(
    ("size", "name", "count", "printed"),
    [
        ("7b", "MemVP", 3_879_040, "3.9M"),
        ("13b", "MemVP", 5_487_744, "5.5M"),
        ("7b", "LaVIN", 3_781_296, "3.8M"),
        ("13b", "LaVIN", 5_390_080, "5.4M"),
        ("7b", "LLaMA-Adapter", 1_823_808, "1.8M"),
        ("7b", "LLaVA-LoRA", 4_395_136, "4.4M"),
    ],
)
def test_baselines_count_as_published(size: str, name: str, count: int, printed: str) -> None:
    found = {cost.name: cost for cost in baseline_costs(SIZES[size])}[name]
    assert found.parameters == count and agrees(count, printed)


def test_memvp_by_formula_is_our_recipe_of_it() -> None:
    model = build_on_meta(dehvf_kit.load_recipe(ABLATION))
    memvp = baseline_costs(SIZES["7b"])[0]
    assert model.num_trainable_parameters() == memvp.parameters - memvp.unused


def test_lavins_adapter_by_hand() -> None:
    assert (mixture_adapter(4096), mixture_adapter(1024)) == (81_930, 20_490)


def test_the_planner_is_given_the_formulas() -> None:
    rows = baseline_rows(dehvf_kit.load_recipe(ABLATION), Workload(tokens=100))
    assert {row["name"]: row["sequence"] for row in rows} == {"MemVP": 100, "LaVIN": 107, "LLaMA-Adapter": 100, "LLaVA-LoRA": 356}
