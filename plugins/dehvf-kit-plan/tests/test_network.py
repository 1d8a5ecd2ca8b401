"""Several GPUs in a plan: what travels, what a split decoder leaves on each, and the page that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from dehvf_kit_plan.gpus import find_gpu
from dehvf_kit_plan.network import sharded_bytes, traffic
from dehvf_kit_plan.plan import Workload, count_work, make_plan
from helpers import tiny_recipe

from dehvf_kit.errors import DehvfError
from tools.scale_page import feature_line, rows

ROOT = Path(__file__).parents[3]
GPU = find_gpu("a100-80gb")


def test_traffic_by_hand() -> None:
    assert traffic(adapter=800, sharded_decoder=0, gpus=1, accumulation=1) == 0
    assert traffic(adapter=800, sharded_decoder=0, gpus=8, accumulation=3) == 2 * 800 * 7 // 8
    assert traffic(adapter=800, sharded_decoder=8000, gpus=8, accumulation=3) == 1400 + 2 * 3 * 7000


def test_a_split_decoder_by_hand() -> None:
    assert sharded_bytes(decoder=1000, layer=100, gpus=8) == 125 + 200


@pytest.mark.nightly
def test_splitting_changes_weights_and_traffic_alone() -> None:
    recipe = tiny_recipe()
    whole, split = (make_plan(recipe, GPU, Workload(tokens=20, answer=2, gpus=8, shard=shard)) for shard in (False, True))
    assert split.weights < whole.weights and split.traffic > whole.traffic > 0
    assert whole.train_bytes - split.train_bytes == whole.weights - split.weights
    assert (whole.train, whole.steps, whole.decode_bytes) == (split.train, split.steps, split.decode_bytes)


def test_a_quantised_decoder_is_not_planned_split() -> None:
    recipe = tiny_recipe(decoder={"quantization": "int8"})
    with pytest.raises(DehvfError, match="cannot be split"):
        make_plan(recipe, GPU, Workload(tokens=20, answer=2, gpus=8, shard=True))


@pytest.mark.nightly
def test_quantising_leaves_the_counts_alone() -> None:
    work = Workload(tokens=20, answer=2)
    plain, small = tiny_recipe(), tiny_recipe(decoder={"quantization": "int4"})
    counts = count_work(plain, work)
    assert counts == count_work(small, work)
    assert make_plan(small, GPU, work, counts).weights < make_plan(plain, GPU, work, counts).weights


@pytest.mark.nightly
def test_the_page_shows_what_is_planned_now() -> None:
    """The 7B rows; the others are written by the same code."""
    page = (ROOT / "docs/scale.md").read_text()
    for row in [*rows(ROOT / "recipes", "llama7b_clip"), feature_line(ROOT / "recipes")]:
        assert row in page, f"run python -m tools.scale_page; the page has no line {row}"
