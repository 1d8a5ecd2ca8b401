"""Reads YAML and JSON without surprises, and writes YAML.

Refused, with the line: keys that stand twice, aliases, what is not plain data, not UTF-8, half a character, not finite, or nested
without end.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from dehvf_kit.errors import DataError, Fault, RecipeError, did_you_mean

HALF_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
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


class NotJson(ValueError):
    """Bytes that are no JSON, or JSON that does not mean one thing; `line` counts from 1, 0 where it is not known."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def parse_json(data: bytes, repeated: list[str] | None = None, max_depth: int | None = None) -> Any:
    """The value of UTF-8 JSON text, with or without a byte order mark.

    repeated: where given, keys that an object has twice are added to it and the last one's value is kept.
    max_depth: how deep objects and lists may lie in one another; None: as deep as Python reads. Raises: NotJson.
    """

    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = [key for key, count in counts.items() if count > 1]
            if repeated is None:
                raise NotJson(f"key '{twice[0]}' stands twice in one object; keep one")
            repeated.extend(twice)
        return found

    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=whole, parse_constant=_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise NotJson(f"not JSON: {error.msg} at column {error.colno}", error.lineno) from error
    except RecursionError as error:
        raise NotJson("nested too deeply") from error
    except NotJson:
        raise
    except ValueError as error:  # a whole number of too many digits
        raise NotJson(f"not JSON: {str(error)[:80]}") from error
    if max_depth is not None and deeper_than(value, max_depth):
        raise NotJson(f"nested more than {max_depth} deep")
    if HALF_ESCAPE.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise NotJson("holds half a character, such as \\ud83d without its second half") from error
    return value


def deeper_than(value: Any, limit: int) -> bool:
    """Whether objects and lists lie in one another more than `limit` deep."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _constant(name: str) -> float:
    raise NotJson(f"{name} is no number in JSON; write null, or leave it out")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"{text[:40]} is too large a number")
    return value


def read_json(file: Path, repeated: list[str] | None = None) -> Any:
    """The value in a JSON file. repeated: takes the keys that an object has twice; without it they are refused.

    Raises: DataError for a missing file, for what is not UTF-8 or not JSON, naming line and column.
    """
    if not os.path.isfile(file):
        raise DataError(f"there is no file '{file}'")
    try:
        return parse_json(file.read_bytes(), repeated)
    except NotJson as error:
        raise DataError(f"{file}{f':{error.line}' if error.line else ''}: {error}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
