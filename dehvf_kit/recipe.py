"""The recipe: YAML -> checked settings -> checked graph. Every fault is reported at once, with its path.

Sections: `extends` (a parent recipe), `name`, `description`, `published`, `vision` (one encoder, or several by name),
`decoder`, `graph` (named nodes), `training`, `data`, `generation`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from dehvf_kit.backbones.base import NoConfig, TowerConfig
from dehvf_kit.config import ComponentConfig, Settings, settings_of
from dehvf_kit.data.samples import DataConfig
from dehvf_kit.errors import DehvfError, Fault, RecipeError, did_you_mean, listing
from dehvf_kit.graph import BATCH, DECODER, Graph, Node, check_graph
from dehvf_kit.plugin_manager import plugins
from dehvf_kit.registry import Registry
from dehvf_kit.shapes import DecoderSpec, VisionSpec
from dehvf_kit.training.config import GenerationConfig, TrainingConfig
from dehvf_kit.yaml_files import parse_yaml, read_yaml

SECTIONS = ("name", "description", "published", "vision", "decoder", "graph", "training", "data", "generation")
MAX_PARENTS = 16


class Published(Settings):
    """What the paper reports for this recipe, to stand beside what is built."""

    parameters: str = Field(description="trained parameters as printed, for example 4.17M")
    unused_parameters: int = Field(0, ge=0, description="parameters the published count includes and nothing uses")
    source: str = Field("", description="table or page of the figure")


@dataclass(frozen=True)
class Recipe:
    """A recipe whose every field is known and of the right type; `check()` wires its graph.

    `nodes` maps node names to their role, config and written wires; `source` is what messages call it.
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

    def check(
        self, vision: Mapping[str, VisionSpec] | None = None, decoder: DecoderSpec | None = None
    ) -> Graph:
        """Wire the graph on these towers, or on what the recipe's configs say of them.

        Raises: RecipeError with every fault.
        """
        faults: list[Fault] = []
        specs = dict(vision) if vision is not None else self.vision_specs(faults)
        spec = decoder if decoder is not None else self.decoder_spec(faults)
        if faults or spec is None:
            raise RecipeError(faults, self.source)
        graph, faults = check_graph(self.nodes, specs, spec)
        if graph is None:
            raise RecipeError(faults, self.source)
        return graph

    def vision_specs(self, faults: list[Fault]) -> dict[str, VisionSpec]:
        """Sizes of every encoder, from configs alone; what cannot be read is added to `faults`."""
        specs = {}
        for name, tower in self.vision.items():
            try:
                specs[name] = tower.spec(plugins().registry.sources)
            except DehvfError as error:
                faults.append(Fault("vision" if list(self.vision) == ["vision"] else f"vision.{name}", str(error)))
        return specs

    def decoder_spec(self, faults: list[Fault]) -> DecoderSpec | None:
        """Sizes of the decoder, from its config alone."""
        try:
            return self.decoder.spec(plugins().registry.sources)
        except DehvfError as error:
            faults.append(Fault("decoder", str(error)))
            return None

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data with every default filled in; `parse_recipe` reads it back."""
        single = list(self.vision) == ["vision"]
        towers = {name: settings_of(tower) for name, tower in self.vision.items()}
        return {
            "name": self.name,
            "description": self.description,
            "published": settings_of(self.published) if self.published else None,
            "vision": towers["vision"] if single else towers,
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


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, follow `extends:`, apply `key=value` overrides, and check it.

    The graph is checked too where both towers' configs are at hand; where they are not, `build` checks it on the modules
    it is given. Raises: RecipeError listing every fault with its path, what was given, and what fits.
    """
    file = Path(path)
    source = str(path)
    raw = _read_with_parents(file, source, [])
    for text in overrides:
        _override(raw, text)
    return parse_recipe(raw, source)


def parse_recipe(raw: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Plain data -> Recipe. Raises: RecipeError listing every fault."""
    return _Parser(raw, source, plugins().registry).parse()


def _read_with_parents(file: Path, source: str, seen: list[Path]) -> dict[str, Any]:
    place = file.resolve()
    if place in seen:
        circle = " -> ".join(path.name for path in [*seen[seen.index(place) :], place])
        raise RecipeError([Fault("extends", f"recipes extend each other in a circle: {circle}")], source)
    if len(seen) >= MAX_PARENTS:
        raise RecipeError([Fault("extends", f"more than {MAX_PARENTS} parents in a row")], source)
    raw = read_yaml(file, source)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str) or not parent:
        raise RecipeError([Fault("extends", f"given {parent!r}; name one .yaml file, as a path beside this one")], source)
    above = file.parent / parent
    if not above.is_file():
        near = sorted(path.name for path in above.parent.glob("*.yaml")) if above.parent.is_dir() else []
        raise RecipeError([Fault("extends", f"there is no recipe '{parent}'{did_you_mean(above.name, near)}")], source)
    return merge(_read_with_parents(above, str(above), [*seen, place]), raw)


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """A child recipe over its parent: mappings merge, null removes, a new `type` starts that mapping afresh."""
    merged = copy.deepcopy(dict(parent))
    for key, value in child.items():
        known = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(known, Mapping) and key not in ("inputs", "config"):
            retyped = "type" in value and value["type"] != known.get("type")
            merged[key] = dict(value) if retyped else merge(known, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _override(raw: dict[str, Any], text: str) -> None:
    """Apply one `section.field=value`; the value is read as YAML, so numbers, lists and null are typed."""
    key, equals, given = text.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps):
        raise RecipeError([Fault(text, "an override is written key=value, for example training.batch_size=8")], "override")
    value = parse_yaml(given, f"override {text}") if given else ""
    change: Any = value
    for step in reversed(steps):
        change = {step: change}
    place: Any = raw
    for depth, step in enumerate(steps[:-1]):
        place = place.get(step, {})
        if not isinstance(place, Mapping):
            raise RecipeError([Fault(".".join(steps[: depth + 1]), f"is {place!r}, which has no field '{steps[depth + 1]}'")], f"override {text}")
    merged = merge(raw, change)
    raw.clear()
    raw.update(merged)


class _Parser:
    """Turns plain data into a Recipe, collecting faults instead of stopping at the first."""

    def __init__(self, raw: Mapping[str, Any], source: str, registry: Registry) -> None:
        self.raw, self.source, self.registry = raw, source, registry
        self.faults: list[Fault] = []
        self.whole = True

    def fault(self, path: str, message: str) -> None:
        self.faults.append(Fault(path, message))

    def parse(self) -> Recipe:
        for key in self.raw:
            if key not in SECTIONS:
                self.fault(str(key), f"unknown section{did_you_mean(key, SECTIONS)} Sections: {', '.join(SECTIONS)}")
        recipe = Recipe(
            name=self._text("name", Path(self.source).stem),
            description=self._text("description", ""),
            published=self._settings("published", Published) if self.raw.get("published") is not None else None,
            vision=self._vision(),
            decoder=self._typed("decoder", "decoder", self.raw.get("decoder"), "hf"),
            nodes=self._nodes(),
            training=self._settings("training", TrainingConfig),
            data=self._typed("data", "data", self.raw["data"]) if self.raw.get("data") is not None else None,
            generation=self._settings("generation", GenerationConfig),
            source=self.source,
        )
        if self.whole:
            self._check_graph(recipe)
        if self.faults:
            raise RecipeError(self.faults, self.source)
        return recipe

    def _check_graph(self, recipe: Recipe) -> None:
        """Graph faults too, where the towers' configs are at hand."""
        sources = self.registry.sources
        try:
            vision = {name: tower.spec(sources) for name, tower in recipe.vision.items()}
            decoder = recipe.decoder.spec(sources)
        except NoConfig:
            return
        except DehvfError:
            recipe.vision_specs(self.faults)
            recipe.decoder_spec(self.faults)
            return
        self.faults += check_graph(recipe.nodes, vision, decoder)[1]

    def _text(self, key: str, default: str) -> str:
        value = self.raw.get(key, default)
        if not isinstance(value, str):
            self.fault(key, f"given {value!r}; wants a text")
            return default
        return value

    def _settings(self, key: str, schema: type[BaseModel]) -> Any:
        given = self.raw.get(key)
        return self._validate(key, schema, {} if given is None else given)

    def _vision(self) -> dict[str, TowerConfig]:
        given = self.raw.get("vision")
        if given is None:
            self.fault("vision", "missing; name an encoder, for example `vision: {model: openai/clip-vit-large-patch14}`")
            self.whole = False
            return {}
        if not isinstance(given, Mapping):
            self.fault("vision", f"given {given!r}; wants a mapping with `model:`, or several of them by name")
            self.whole = False
            return {}
        several = bool(given) and all(isinstance(value, Mapping) for value in given.values()) and not set(given) & {"image", "config"}
        towers = dict(given) if several else {"vision": given}
        found = {}
        for name, tower in towers.items():
            if name in (BATCH, DECODER):
                self.fault(f"vision.{name}", f"'{name}' is a reserved name; call the encoder something else")
            found[name] = self._typed(f"vision.{name}" if several else "vision", "vision", tower, "hf")
        return found

    def _nodes(self) -> dict[str, Node]:
        given = self.raw.get("graph")
        if not isinstance(given, Mapping) or not given:
            self.fault("graph", "missing; name its nodes" if not given else f"given {given!r}; wants a mapping of nodes")
            self.whole = False
            return {}
        nodes = {}
        for name, node in given.items():
            found = self._node(str(name), node)
            if found is not None:
                nodes[name] = found
        return nodes

    def _node(self, name: str, given: Any) -> Node | None:
        path = f"graph.{name}"
        if not isinstance(given, Mapping):
            self.fault(path, f"given {given!r}; wants a mapping with `type:`")
            self.whole = False
            return None
        fields = dict(given)
        role = fields.pop("role", name)
        inputs = self._inputs(path, fields.pop("inputs", None))
        roles = [known for known in self.registry.roles() if known not in ("vision", "decoder", "data")]
        if role not in roles:
            hint = did_you_mean(role, roles)
            self.fault(path, f"'{role}' is no role{hint} Name the node after its role, or add `role:`. Roles: {listing(roles)}")
            self.whole = False
            return None
        config = self._typed(path, role, fields)
        if not isinstance(config, ComponentConfig):
            return None
        return Node(name, config, inputs)

    def _inputs(self, path: str, given: Any) -> dict[str, tuple[str, ...]]:
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.fault(f"{path}.inputs", f"given {given!r}; wants port: node or port: node.port")
            return {}
        found = {}
        for port, wires in given.items():
            texts = [wires] if isinstance(wires, str) else wires
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
                self.fault(f"{path}.inputs.{port}", f"given {wires!r}; wants a node's name, node.port, or a list of them")
                continue
            found[port] = tuple(texts)
        return found

    def _typed(self, path: str, role: str, given: Any, default: str | None = None) -> Any:
        """A config whose class is named by `type`."""
        if given is None:
            self.fault(path, "missing")
            self.whole = False
            return None
        if not isinstance(given, Mapping):
            self.fault(path, f"given {given!r}; wants a mapping with `type:`")
            self.whole = False
            return None
        kind = given.get("type", default)
        if not isinstance(kind, str):
            types = listing(self.registry.types(role))
            self.fault(f"{path}.type", f"missing; installed: {types}" if kind is None else f"given {kind!r}; installed: {types}")
            self.whole = False
            return None
        try:
            schema = self.registry.find(role, kind)
        except KeyError as error:
            self.fault(f"{path}.type", str(error.args[0]))
            self.whole = False
            return None
        return self._validate(path, schema, {**given, "type": kind})

    def _validate(self, path: str, schema: type[BaseModel], given: Any) -> Any:
        """Validate, report each error, and go on with the faulty fields left out, so that later checks still run."""
        if not isinstance(given, Mapping):
            self.fault(path, f"given {given!r}; wants a mapping of fields")
            self.whole = False
            return None
        try:
            return schema.model_validate(dict(given))
        except ValidationError as error:
            wrong = set()
            for detail in error.errors():
                place = [str(step) for step in detail["loc"]]
                wrong.add(place[0] if place else "")
                self.fault(".".join([path, *place]), _wording(detail, schema))
        try:
            return schema.model_validate({key: value for key, value in given.items() if key not in wrong})
        except ValidationError:
            self.whole = False
            return None


def _wording(detail: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """A pydantic error as: what was given, what fits."""
    given = detail.get("input")
    kind = detail["type"]
    if kind == "extra_forbidden":
        fields = _fields_at(schema, detail["loc"])
        return f"unknown field{did_you_mean(detail['loc'][-1], fields)} Fields: {listing(fields)}"
    if kind == "missing":
        return "missing"
    if kind == "literal_error":
        options = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"given {given!r}{did_you_mean(given, options)} One of: {listing(options)}"
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"given {given!r}; wants {message}" if detail["msg"].startswith("Input should be") else message


def _fields_at(schema: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the fields beside the one at `location`."""
    for step in location[:-1]:
        info = schema.model_fields.get(str(step))
        if info is None or not isinstance(info.annotation, type) or not issubclass(info.annotation, BaseModel):
            break
        schema = info.annotation
    return list(schema.model_fields)
