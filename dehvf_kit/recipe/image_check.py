"""How a recipe prepares images, beside how its encoders' own processors would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dehvf_kit.backbones.vision.pixels import OwnImages, said
from dehvf_kit.recipe.files import encoder_path
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import Recipe


@dataclass(frozen=True)
class ImageStatement:
    """One encoder's images: the recipe's facts, what its own processor fixes and does besides, and a note where they differ."""

    facts: dict[str, Any]
    own: OwnImages | None
    line: str
    note: str = ""


def image_statements(recipe: Recipe) -> dict[str, ImageStatement]:
    """For each encoder with an `image` section how its images are prepared, and how its checkpoint's own processor differs."""
    return {name: _statement(name, tower) for name, tower in recipe.vision.items() if hasattr(tower, "image")}


def _statement(name: str, tower: Any) -> ImageStatement:
    facts = tower.image.facts()
    reads = getattr(tower, "own_images", None)
    own = reads(plugins().registry.sources) if reads is not None else None
    line = f"{encoder_path(name)}: images {said(facts)}"
    if own is None:
        return ImageStatement(facts, None, f"{line}; no image processor of its own is on this machine to compare with")
    different = own.differences(tower.image)
    note = f"{encoder_path(name)}.image: differs from the encoder's own {own.source}: {said(different)}" if different else ""
    if own.further:
        besides = f"its own {own.source} also does what the kit does not: {', '.join(own.further)}"
        note = f"{note}; {besides}" if note else f"{encoder_path(name)}.image: {besides}"
    return ImageStatement(facts, own, line if different else f"{line}, as its own {own.source}", note)
