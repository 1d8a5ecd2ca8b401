"""What was measured of a saved adapter: scores and batch parity, in `measured.json` beside its weights, and in its card.

The file names the weights it is about by their sha256: of other weights it says nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dehvf_kit.adapter.card import card
from dehvf_kit.adapter.files import WEIGHTS, read_config
from dehvf_kit.errors import AdapterError
from dehvf_kit.utils.atomic import write_text

MEASURED = "measured.json"


def read_measured(folder: Path) -> dict[str, Any]:
    """`measured.json` as it stands; nothing where the file is missing or garbled."""
    try:
        found = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def about(found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Of what was measured, that which is about the weights in a folder."""
    if not found or found.get("weights") != _digest(folder):
        return {}
    return {key: value for key, value in found.items() if key != "weights" and isinstance(value, dict)}


def write_measured(folder: Path, known: Mapping[str, Any]) -> None:
    """Write `measured.json` for the weights in a folder; where nothing is known there is none."""
    if known:
        write_text(folder / MEASURED, json.dumps({"weights": _digest(folder), **known}, indent=2) + "\n")
    else:
        (folder / MEASURED).unlink(missing_ok=True)


def keep(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    """Add what was measured to an adapter's `measured.json` and write its card anew.

    Raises: AdapterError where the folder is no adapter or cannot be written.
    """
    config = read_config(folder)
    known = {**about(read_measured(folder), folder), name: dict(facts)}
    try:
        write_measured(folder, known)
        write_text(folder / "README.md", card(config, _sizes(folder), known))
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _digest(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    except OSError as error:
        raise AdapterError(f"{folder / WEIGHTS}: cannot be read: {error.strerror or error}") from error


def _sizes(folder: Path) -> dict[str, int]:
    """Numbers in each weight of the file, from its header."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{folder / WEIGHTS}: cannot be read: {error}") from error
