"""JSON files of data sets: read whole, with repeated keys found instead of overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dehvf_kit.errors import DataError


def read_json(file: Path, repeated: list[str] | None = None) -> Any:
    """The value in a JSON file. Keys that an object has twice are added to `repeated`; the last one's value is kept.

    Raises: DataError for a missing file, for what is not UTF-8 or not JSON, naming line and column.
    """

    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if repeated is not None and key in found:
                repeated.append(key)
            found[key] = value
        return found

    if not file.is_file():
        raise DataError(f"there is no file '{file}'")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=whole)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from error
    except (OSError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
