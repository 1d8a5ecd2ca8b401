"""Reads YAML without surprises (duplicate keys, aliases and anything but plain data are refused, with their line); writes it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from dehvf_kit.errors import Fault, RecipeError, did_you_mean

MAX_BYTES = 100_000
"""Fifty times the longest recipe; PyYAML reads so much in less than a second."""
MAX_DEPTH = 32
LINE = 118
HEAD = ("format", "name", "description")
HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, stricter."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"alias '*{event.anchor}'; a recipe has no aliases, use `extends:`", problem_mark=event.start_mark
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is no text; quote it", problem_mark=key_node.start_mark)
            if not key.strip():
                raise yaml.MarkedYAMLError(problem="an empty key; name it", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key}' stands twice, first on line {seen[key]}; keep one", problem_mark=key_node.start_mark
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, source: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises: RecipeError naming the line, for anything that is not a plain mapping."""
    if os.path.isdir(path):
        raise RecipeError([Fault("", "is a folder; name a .yaml file")], source)
    if os.path.exists(path) and not os.path.isfile(path):
        raise RecipeError([Fault("", "is no regular file; name a .yaml file")], source)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError([Fault("", f"has {path.stat().st_size} bytes; a recipe has at most {MAX_BYTES}")], source)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = sorted(file.name for file in path.parent.glob("*.yaml")) if os.path.isdir(path.parent) else []
        raise RecipeError([Fault("", f"there is no such file{did_you_mean(path.name, near)}")], source) from error
    except (OSError, ValueError) as error:
        raise RecipeError([Fault("", f"cannot be read: {error}")], source) from error
    loaded = parse_yaml(text, source)
    if loaded is None:
        raise RecipeError([Fault("", "is empty; a recipe is a mapping with `decoder`, `vision` and `graph`")], source)
    if not isinstance(loaded, dict):
        raise RecipeError([Fault("", f"holds {_kind(loaded)}; a recipe is a mapping of sections")], source)
    return loaded


def parse_yaml(text: str, source: str) -> Any:
    """Plain data from YAML text. Raises: RecipeError naming line and column."""
    try:
        loaded = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
        faults = list(_odd_values(loaded, ()))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else _line_of(text, error)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        wording = next((ours for theirs, ours in _WORDINGS.items() if theirs in problem), problem)
        raise RecipeError([Fault(where, f"not valid YAML: {wording}")], source) from error
    except RecursionError as error:
        raise RecipeError([Fault("", "is nested too deeply")], source) from error
    except (ValueError, OverflowError) as error:
        raise RecipeError([Fault("", f"not valid YAML: {str(error)[:120]}")], source) from error
    if faults:
        raise RecipeError(faults, source)
    return loaded


# PyYAML's problems that say little to a reader of recipes, and what we say instead.
_WORDINGS = {
    "found character '\\t'": "a tab; indent with spaces",
    "found another document": "a second document begins here; keep one a file",
    "tag:yaml.org,2002:merge": "merge key `<<`; a recipe has none, use `extends:`",
    "could not determine a constructor": "a tag such as `!name`; write plain values only",
    "special characters are not allowed": "a character that no text file holds, such as a null byte",
    "<stream end>": "the text ends inside a bracket or a quote; close it",
}


def _line_of(text: str, error: yaml.YAMLError) -> str:
    """The line of a character that YAML does not allow, for errors without a mark."""
    position = getattr(error, "position", None)
    return "" if position is None else f"line {text.count(chr(10), 0, position) + 1}"


def _odd_values(value: Any, path: tuple[str, ...]) -> Iterator[Fault]:
    """Values that JSON does not know, such as dates, infinities and half characters."""
    if isinstance(value, (str, dict)):
        texts = [value] if isinstance(value, str) else value
        if any(HALF_CHARACTER.search(text) for text in texts):
            yield Fault(".".join(path), "holds half a character, such as \\ud83d without its second half")
            return
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _odd_values(item, (*path, str(key)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Fault(".".join(path), f"given {value}; wants a finite number")
    elif not (value is None or isinstance(value, (str, int, float, bool))):
        given = value if isinstance(value, date) else repr(value)
        yield Fault(".".join(path), f"{given} is {_kind(value)}; quote it to make it a text")


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else f"a {type(value).__name__}")


class _Dumper(yaml.SafeDumper):
    """Lists of plain values in one line; no aliases, which recipes refuse."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_list(self, data: list[Any]) -> yaml.Node:
        plain = not any(isinstance(item, (dict, list)) for item in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(list, _Dumper.represent_list)


def to_yaml(values: dict[str, Any]) -> str:
    """YAML that a recipe file may hold, sections apart."""
    parts = [
        yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, width=LINE, allow_unicode=True) for key, value in values.items()
    ]
    return "".join(part if key in HEAD else f"\n{part}" for key, part in zip(values, parts, strict=True))
