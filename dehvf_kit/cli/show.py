"""`dehvf-kit show`: a recipe with its parents merged and every default filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dehvf_kit.cli.console import print_json, quiet_transformers, stdout, waiting

LINE = 118
HEAD = ("format", "name", "description")


class _Dumper(yaml.SafeDumper):
    """Lists of plain values in one line; no aliases, which recipes refuse."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_list(self, data: list[Any]) -> yaml.Node:
        plain = not any(isinstance(item, (dict, list)) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(list, _Dumper.represent_list)


def run(path: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Print a recipe whole. Raises: RecipeError listing every fault."""
    with waiting(f"Reading {path}", plain=True):
        from dehvf_kit.recipe import load_recipe

        quiet_transformers()
        resolved = load_recipe(path, overrides).resolved()
    if as_json:
        print_json(resolved)
        return
    text = to_yaml(resolved)
    console = stdout()
    if not console.is_terminal:
        print(text, end="")
        return
    from rich.syntax import Syntax

    console.print(Syntax(text, "yaml", theme="ansi_dark").highlight(text), end="", soft_wrap=True)


def to_yaml(values: dict[str, Any]) -> str:
    """YAML that a recipe file may hold, sections apart."""
    parts = [
        yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, width=LINE, allow_unicode=True)
        for key, value in values.items()
    ]
    return "".join(part if key in HEAD else f"\n{part}" for key, part in zip(values, parts, strict=True))
