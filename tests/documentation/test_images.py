"""docs/images/grouping.svg is what docs/draw.py draws now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dehvf_kit import load_recipe

ROOT = Path(__file__).parents[2]


def test_grouping_is_as_the_recipe_groups() -> None:
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    assert spec is not None and spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    graph = load_recipe(ROOT / "recipes" / "llama7b_clip.yaml").check()
    groups = graph.nodes["grouper"].config.members_of(24)
    assert (draw.IMAGES / "grouping.svg").read_text(encoding="utf-8") == draw.grouping(24, groups, 32)
    assert draw.grouping(24, groups, 31) != draw.grouping(24, groups, 32)
