"""Every count equals the built module's, and figures compare as they are printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import count, raw_recipe

import dehvf_kit
from dehvf_kit.costs.parameters import agrees, parameter_table
from dehvf_kit.errors import DehvfError
from dehvf_kit.model.builder import build_nodes
from dehvf_kit.recipe.parser import Published

GRAPHS: dict[str, dict[str, Any]] = {
    "dehvf": {},
    "same_query": {"layer_query": {"separate_kv": False}},
    "learned_tokens": {"layer_query": {"type": "learned_tokens", "query_size": 8}},
    "mean": {"layer_query": None, "fuser": {"type": "mean"}},
    "linear": {"projector": {"type": "linear"}},
    "penultimate": {"layer_query": None, "fuser": {"type": "mean"}, "grouper": {"type": "listed", "groups": [[-2]]}},
    "blind": {"grouper": None, "layer_query": None, "projector": None, "fuser": None},
}
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_every_term_is_the_built_modules(graph: dict[str, Any]) -> None:
    checked = dehvf_kit.parse_recipe(raw_recipe(graph=graph)).check()
    nodes = build_nodes(checked)
    table = parameter_table(checked)
    for name, node in nodes.items():
        assert sum(term.count for term in table.terms if term.node == name) == count(node), name
    assert table.trainable == sum(count(node) for node in nodes.values())


def test_two_encoders_count_as_built() -> None:
    graph = dehvf_kit.load_recipe(RECIPES / "two_encoders.yaml").check()
    assert parameter_table(graph).trainable == sum(count(node) for node in build_nodes(graph).values())


def test_nothing_published_is_nothing_to_compare() -> None:
    table = parameter_table(dehvf_kit.parse_recipe(raw_recipe()).check())
    assert (table.unused, table.matches) == (0, None)
    assert table.as_published == table.trainable


def test_unused_parameters_are_added_and_shown_apart() -> None:
    graph = dehvf_kit.parse_recipe(raw_recipe()).check()
    ours = parameter_table(graph).trainable
    table = parameter_table(graph, Published(parameters=f"{ours + 64:,}", unused_parameters=64))
    assert (table.trainable, table.as_published, table.matches) == (ours, ours + 64, True)


@pytest.mark.parametrize(
    ("number", "printed", "fits"),
    [
        (4_171_520, "4.17M", True),
        (4_175_000, "4.18M", True),
        (4_174_999, "4.17M", True),
        (4_175_000, "4.17M", False),
        (3_879_000, "3.9M", True),
        (659_584, "660K", True),
        (659_584, "659584", True),
        (659_584, "659,585", False),
        (6_738_415_616, "6.7b", True),
        (10_000_000, "10M", True),
    ],
)
def test_figures_compare_as_printed(number: int, printed: str, fits: bool) -> None:
    assert agrees(number, printed) is fits


@pytest.mark.parametrize("printed", ["", "many", "4.17 MB", "-3M", "4..1M"])
def test_what_is_no_figure_is_refused(printed: str) -> None:
    with pytest.raises(DehvfError, match="wants a figure"):
        agrees(1, printed)
