"""The recipe: YAML -> checked settings -> checked graph. Every fault is reported at once, with its path.

Sections: `extends` (a parent recipe), `format`, `name`, `description`, `published`, `vision` (one encoder, or several by name),
`decoder`, `graph` (named nodes), `training`, `data`, `generation`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dehvf_kit.api.config import settings_of
from dehvf_kit.api.registry import plugin_code
from dehvf_kit.api.shapes import DecoderSpec, VisionSpec
from dehvf_kit.backbones.base import TowerConfig
from dehvf_kit.backbones.vision.config import OwnImages, said
from dehvf_kit.data.samples import DataConfig
from dehvf_kit.errors import DehvfError, Fault, RecipeError
from dehvf_kit.recipe.files import Steps, alone, encoder_path, override, parents_of, read_with_parents, refuse_needless
from dehvf_kit.recipe.graph import DECODER, Graph, Node, check_graph
from dehvf_kit.recipe.migrations import FORMAT
from dehvf_kit.recipe.parser import Checked, Parser, Published
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.sections import GenerationConfig, TrainingConfig, precision_here


@dataclass(frozen=True)
class Recipe:
    """A recipe whose every field is known and of the right type; `check()` wires its graph.

    `nodes` maps node names to their role, config and written wires; `source` is what messages call it; `parents` are the
    files it extends, the nearest first.
    """

    name: str
    description: str
    published: Published | None
    vision: Mapping[str, TowerConfig]
    decoder: TowerConfig
    nodes: Mapping[str, Node]
    training: TrainingConfig
    data: DataConfig | None
    generation: GenerationConfig
    source: str = "recipe"
    parents: tuple[str, ...] = field(default=(), compare=False)
    _checked: Checked = field(default_factory=Checked, init=False, repr=False, compare=False)

    def check(self, vision: Mapping[str, VisionSpec] | None = None, decoder: DecoderSpec | None = None) -> Graph:
        """Wire the graph on these towers, or on what the recipe's configs say of them.

        Args:
            vision: sizes and layers of each encoder, by its name in the recipe.
            decoder: sizes and layers of the decoder.

        Raises: RecipeError with every fault.
        """
        if vision is None and decoder is None and self._checked.graph is not None:
            return self._checked.graph
        faults: list[Fault] = []
        specs = dict(vision) if vision is not None else self.vision_specs(faults)
        spec = decoder if decoder is not None else self.decoder_spec(faults)
        if faults or spec is None:
            raise RecipeError(faults, self.source)
        graph, faults = check_graph(self.nodes, specs, spec)
        if graph is None:
            raise RecipeError(faults, self.source)
        return graph

    @property
    def reads_images(self) -> bool | None:
        """Whether anything in the graph reads an image's features; None where the base models' configs are not at hand."""
        try:
            edges = self.check().edges()
        except RecipeError:
            return None
        return any(wire.node in self.vision and wire.port != "tower" for wire, _, _ in edges)

    def vision_specs(self, faults: list[Fault]) -> dict[str, VisionSpec]:
        """Sizes of every encoder, from configs alone; what cannot be read is added to `faults`."""
        specs = {}
        for name, tower in self.vision.items():
            try:
                specs[name] = self._spec(name, tower)
            except DehvfError as error:
                faults.append(Fault(encoder_path(name), str(error)))
        return specs

    def decoder_spec(self, faults: list[Fault]) -> DecoderSpec | None:
        """Sizes of the decoder, from its config alone."""
        try:
            return self._spec(DECODER, self.decoder)
        except DehvfError as error:
            faults.append(Fault("decoder", str(error)))
            return None

    def _spec(self, name: str, tower: Any) -> Any:
        """A tower's sizes, read once."""
        if name not in self._checked.specs:
            with plugin_code(tower):
                self._checked.specs[name] = tower.spec(plugins().registry.sources)
        return self._checked.specs[name]

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data with every default filled in; `parse_recipe` reads it back."""
        towers = {name: settings_of(tower) for name, tower in self.vision.items()}
        return {
            "format": FORMAT,
            "name": self.name,
            "description": self.description,
            "published": settings_of(self.published) if self.published else None,
            "vision": alone(towers),
            "decoder": settings_of(self.decoder),
            "graph": {
                name: {
                    "role": node.config.role,
                    **settings_of(node.config),
                    **({"inputs": {port: list(wires) for port, wires in node.inputs.items()}} if node.inputs else {}),
                }
                for name, node in self.nodes.items()
            },
            "training": settings_of(self.training),
            "data": settings_of(self.data) if self.data else None,
            "generation": settings_of(self.generation),
        }


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe as it is, from plain data as `parse_recipe` takes it, or from a file, with `key=value` overrides.

    Raises: RecipeError.
    """
    if isinstance(recipe, str | Path):
        return load_recipe(recipe, overrides)
    if isinstance(recipe, Recipe) and not overrides:
        return recipe
    raw, source, parents = dict(copy.deepcopy(recipe)) if isinstance(recipe, Mapping) else {}, "recipe", ()
    if isinstance(recipe, Recipe):
        raw = {name: section for name, section in recipe.resolved().items() if section is not None}
        source, parents = recipe.source, recipe.parents
    for text in [overrides] if isinstance(overrides, str) else overrides:
        override(raw, text)
    return _parsed(raw, source, parents)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, follow `extends:`, apply `key=value` overrides, and check it.

    The graph is checked too where both towers' configs are at hand; where they are not, `build` checks it on the modules
    it is given.

    Args:
        path: a YAML file, or the name of a recipe that the kit ships.
        overrides: `key=value` texts, dotted keys, values in YAML.

    Raises: RecipeError listing every fault with its path, what was given, and what fits.
    """
    source = str(path)
    needless: list[Steps] = []
    raw = read_with_parents(Path(path), source, (), needless)
    for text in [overrides] if isinstance(overrides, str) else overrides:
        override(raw, text, needless)
    recipe = _parsed(raw, source, parents_of(Path(path), source))
    if needless:
        refuse_needless(needless, recipe.resolved(), source)
    return recipe


def parse_recipe(raw: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Plain data -> Recipe.

    Args:
        raw: what a recipe file holds; paths in it are taken as they are.
        source: what messages call it.

    Raises: RecipeError listing every fault.
    """
    return _parsed(raw, source)


def _parsed(raw: Mapping[str, Any], source: str, parents: tuple[str, ...] = ()) -> Recipe:
    parser = Parser(raw, source, plugins().registry)
    recipe = Recipe(**parser.parse(), parents=parents)
    recipe._checked.specs.update(parser.checked.specs)
    recipe._checked.graph = parser.checked.graph
    return recipe


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


def unscaled(recipe: Recipe, decoder: str) -> str:
    """What to say where gradients pass float16 weights, of a dtype `decoder` or an encoder's, without loss scaling; else ""."""
    adapted = any(node.config.role == "vision_adapter" for node in recipe.nodes.values())
    found = ["decoder"] if decoder.removeprefix("torch.") == "float16" else []
    found += [encoder_path(name) for name, tower in recipe.vision.items() if adapted and tower.dtype == "float16"]
    return "" if not found or precision_here(recipe.training.precision) != "float32" else (
        f"{' and '.join(found)}: gradients pass float16 weights without loss scaling, so small ones are rounded to zero and large "
        "ones overflow; set training.precision=float16, or dtype to bfloat16"
    )  # fmt: skip
