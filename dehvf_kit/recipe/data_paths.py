"""Paths of a recipe's `data` section: taken from the recipe's own folder, where they are there, else from the current one."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLACES = ("path", "images", "annotations")
FILES = ("train", "test")
"""Files of a data set, or the names of its splits where `path` is set."""


def beside_recipe(raw: dict[str, Any], folder: Path, parent: Mapping[str, Any]) -> None:
    """Make those relative data paths absolute that are found in a recipe's folder; in the current folder they stay as written.

    raw: a recipe file's own data; parent: its parents', which may name the `path` that its splits belong to.
    """
    data, above = raw.get("data"), parent.get("data")
    if not isinstance(data, dict) or os.path.abspath(folder) == os.getcwd():
        return
    has_path = bool(data.get("path") or (isinstance(above, Mapping) and above.get("path")))
    for field in PLACES if has_path else (*PLACES, *FILES):
        if isinstance(data.get(field), str):
            data[field] = _found(data[field], folder)
        elif isinstance(data.get(field), list):
            data[field] = [_found(one, folder) if isinstance(one, str) else one for one in data[field]]


def _found(text: str, folder: Path) -> str:
    place = os.path.abspath(folder / text)
    if not text or "\0" in text or os.path.isabs(text) or not (os.path.exists(place) or glob.glob(place)):
        return text
    return place
