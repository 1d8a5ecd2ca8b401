"""Reads JSON without surprises: UTF-8, no key twice, no NaN, no half characters, nothing nested without end."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from dehvf_kit.errors import DataError

HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


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
    if HALF_CHARACTER.search(data):
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
