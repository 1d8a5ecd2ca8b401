"""JSON files of data sets: read whole, with repeated keys found instead of overwritten."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dehvf_kit.errors import DataError
from dehvf_kit.utils.strict_json import NotJson, parse_json


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
