"""The tables of GPU hours in the reproduction guide and of budgets in the guide to baselines, as `dehvf-kit reproduce` has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from dehvf_kit_baselines.reproduction.methods import markdown_table, sizes
from dehvf_kit_baselines.reproduction.tables import published, table

BETWEEN = re.compile(r"(?<=<!-- hours: written by `python -m tools.reference` -->\n).*?(?=<!-- end of hours -->)", re.DOTALL)
BUDGETS = re.compile(r"(?<=<!-- budgets: written by `python -m tools.reference` -->\n).*?(?=<!-- end of budgets -->)", re.DOTALL)
HEAD = (
    "| table | method | recipe | parameters, published | ours, counted as published | hours of one A100 |\n"
    "|---|---|---|---|---:|---:|\n"
)


def with_hours(page: str) -> str:
    """The page with its table written anew between the two comments."""
    return BETWEEN.sub(lambda _: "\n" + HEAD + "".join(_rows()) + "\n", page)


def with_budgets(page: str) -> str:
    """The page with its table of methods and budgets written anew between the two comments."""
    return BUDGETS.sub(lambda _: "\n".join(["", *markdown_table(*sizes(), figures=3), "", ""]), page)


@cache
def _rows() -> tuple[str, ...]:
    return tuple(_counted())


def _counted() -> Iterator[str]:
    for name in ("table1", "table3", "table4"):
        for row in table(name, Path("no runs")):
            if row.hours is not None and row.parameters_from.startswith("recipes/"):
                yield (
                    f"| {published()[name]['source'].removeprefix('DEHVF, ')} | {row.method} | `{row.parameters_from}` "
                    f"| {row.published_parameters} | {row.parameters:,} | {row.hours:,.1f} |\n"
                )
