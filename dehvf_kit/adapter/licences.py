"""The licence of a base model, where its own files or the plugin that supplies it say which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dehvf_kit.recipe.plugin_manager import plugins

LONGEST = 65_536
"""Bytes of a README.md that are looked at."""


def licence_of(name: str, model: Any) -> str | None:
    """A licence as its owner writes it (`apache-2.0`); None where nothing on this machine says it.

    name: as the recipe calls the model. Looked at are the plugin's own word, and the front matter of the README.md that lies
    beside the weights. Nothing is fetched.
    """
    source = plugins().registry.sources.get(name)
    if source is not None and source.licence:
        return source.licence
    place = getattr(getattr(model, "config", None), "_name_or_path", None)
    file = _readme(place) if isinstance(place, str) and place else None
    return _front_matter_licence(file) if file is not None else None


def _readme(place: str) -> Path | None:
    """The README.md of a folder, or of a hub id in the hub's own cache."""
    if Path(place).is_dir() or place.count("/") != 1:
        return Path(place) / "README.md"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(place, "README.md")
    return Path(found) if isinstance(found, str) else None


def _front_matter_licence(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            text = opened.read(LONGEST).decode("utf-8", "replace")
    except OSError:
        return None
    if not text.startswith("---\n"):
        return None
    try:
        found = yaml.safe_load(text[4:].partition("\n---")[0])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return licence if isinstance(licence, str) and licence.isprintable() and len(licence) < 100 else None
