"""Plain data -> a recipe's checked fields: every `type` resolved, every field validated, every fault worded for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from dehvf_kit.api.config import ComponentConfig, Settings
from dehvf_kit.api.registry import Registry, plugin_code
from dehvf_kit.api.shapes import DecoderSpec, VisionSpec
from dehvf_kit.backbones.base import NoConfig, TowerConfig
from dehvf_kit.data.samples import LIKELIHOOD
from dehvf_kit.errors import DehvfError, Fault, PluginError, RecipeError, did_you_mean, listing, shown
from dehvf_kit.recipe.files import by_name, encoder_path, encoders_of
from dehvf_kit.recipe.graph import BATCH, DECODER, Graph, Node, check_graph
from dehvf_kit.recipe.migrations import FORMAT, migrate
from dehvf_kit.recipe.sections import GenerationConfig, TrainingConfig
from dehvf_kit.recipe.wording import faults

SECTIONS = ("format", "name", "description", "published", "vision", "decoder", "graph", "training", "data", "generation")
PRINTED = re.compile(r"\s*(\d[\d,]*)(\.\d+)?\s*([KMB]?)\s*", re.IGNORECASE)
PRINTED_EXAMPLES = "a figure such as 4.17M, 659K or 4,171,520"


class Published(Settings):
    """What the paper reports for this recipe, to stand beside what is built."""

    parameters: str = Field(description="trained parameters as printed, for example 4.17M")
    unused_parameters: int = Field(0, ge=0, description="parameters the published count includes and nothing uses")
    source: str = Field("", description="table or page of the figure")

    @field_validator("parameters")
    @classmethod
    def _figure(cls, value: str) -> str:
        if not PRINTED.fullmatch(value):
            raise ValueError(f"given {shown(value)}; wants {PRINTED_EXAMPLES}")
        return value


@dataclass
class Checked:
    """What parsing learned of the towers, by name, and the graph wired on them, where all of them are known."""

    specs: dict[str, Any] = field(default_factory=dict)
    graph: Graph | None = None


class Parser:
    """Turns plain data into a recipe's checked fields, collecting faults instead of stopping at the first."""

    def __init__(self, raw: Mapping[str, Any], source: str, registry: Registry) -> None:
        self.raw, self.source, self.registry = raw, source, registry
        self.faults: list[Fault] = []
        self.whole = True
        self.unsure: set[str] = set()
        self.checked = Checked()

    def fault(self, path: str, message: str, whole: bool = True) -> None:
        """Note a fault. whole: whether the graph can still be checked."""
        self.faults.append(Fault(path, message))
        self.whole = self.whole and whole

    def parse(self) -> dict[str, Any]:
        """The fields of a `Recipe`. Raises: RecipeError listing every fault."""
        self._format()
        self._refuse_huge_numbers()
        self._section_names()
        fields = self._sections()
        self._node_rates(fields["training"], fields["nodes"])
        self._training_on(fields["data"], fields["training"])
        if self.whole:
            self._check_graph(fields["vision"], fields["decoder"], fields["nodes"])
        if self.faults:
            raise RecipeError(self.faults, self.source)
        return fields

    def _section_names(self) -> None:
        for key in self.raw:
            if key == "extends":
                self.fault(key, "only a recipe in a file can name a parent, on its own top level")
            elif key not in SECTIONS:
                self.fault(str(key) or "''", f"unknown section{did_you_mean(key, SECTIONS)} Sections: {', '.join(SECTIONS)}")

    def _sections(self) -> dict[str, Any]:
        """Every section, each checked by itself."""
        given = self.raw
        return {
            "name": self._text("name", Path(self.source).stem),
            "description": self._text("description", ""),
            "published": None if given.get("published") is None else self._settings("published", Published),
            "vision": self._vision(),
            "decoder": self._typed("decoder", "decoder", given.get("decoder"), "hf"),
            "nodes": self._nodes(),
            "training": self._settings("training", TrainingConfig),
            "data": None if given.get("data") is None else self._typed("data", "data", given["data"]),
            "generation": self._settings("generation", GenerationConfig),
            "source": self.source,
        }

    def _node_rates(self, training: TrainingConfig | None, nodes: Mapping[str, Node]) -> None:
        """Rates of nodes that there are not; of a graph that is no mapping, nothing more is said."""
        graph = self.raw.get("graph")
        for name in training.node_rates if training is not None and isinstance(graph, Mapping) else ():
            if name not in graph:
                hint, known = did_you_mean(name, nodes), ", ".join(nodes)
                self.fault(f"training.node_rates.{name}", f"the graph has no such node{hint} Nodes: {known}")

    def _training_on(self, data: Any, training: TrainingConfig | None) -> None:
        """Settings that the data set cannot honour."""
        if data is None or training is None:
            return
        try:
            with plugin_code(data, "data"):
                data.check_training(training)
        except DehvfError as error:
            self.fault("training", str(error))

    def _format(self) -> None:
        """Bring an earlier format to the newest; refuse a newer one at once: most other faults would follow from it."""
        given = self.raw.get("format", 1)
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            self.fault("format", f"given {shown(given)}; wants a whole number, the newest is {FORMAT}")
        elif given > FORMAT:
            raise RecipeError([Fault("format", f"{shown(given)}, this kit reads up to {FORMAT}; upgrade dehvf-kit")], self.source)
        elif given < FORMAT:
            self.raw = migrate(self.raw, given, FORMAT)

    def _refuse_huge_numbers(self) -> None:
        """Refuse whole numbers that no machine counts to, before anything computes with them."""
        faults = [
            Fault(".".join(path), f"given {shown(value)}; wants a number of at most 63 bits")
            for path, value in _leaves(self.raw)
            if isinstance(value, int) and abs(value) >= 2**63
        ]
        if faults:
            raise RecipeError(faults, self.source)

    def _check_graph(self, towers: Mapping[str, TowerConfig], decoder: TowerConfig, nodes: Mapping[str, Node]) -> None:
        """Graph faults too: of its wires always, of its sizes where the towers' configs are at hand and sound."""
        vision = {name: self._spec(name, tower, VisionSpec(1, 1, None)) for name, tower in towers.items()}
        spec = self._spec(DECODER, decoder, DecoderSpec(1, 1))
        graph, faults = check_graph(nodes, vision, spec, self.unsure)
        self.faults += faults
        self.checked.graph = None if self.unsure else graph

    def _spec(self, name: str, tower: TowerConfig, stand_in: Any) -> Any:
        """A tower's sizes, or a stand-in and a note that they are not known."""
        if name in self.unsure:
            return stand_in
        try:
            with plugin_code(tower):
                self.checked.specs[name] = tower.spec(self.registry.sources)
            return self.checked.specs[name]
        except NoConfig:
            pass
        except DehvfError as error:
            self.fault(name if name == DECODER else encoder_path(name), str(error))
        self.unsure.add(name)
        return stand_in

    def _text(self, key: str, default: str) -> str:
        value = self.raw.get(key, default)
        if not isinstance(value, str):
            self.fault(key, f"given {shown(value)}; wants a text")
            return default
        return value

    def _name(self, path: str, name: Any) -> bool:
        """Whether a name can be an attribute of the model; if not, that is a fault."""
        from torch import nn

        if not isinstance(name, str) or not name.isidentifier():
            self.fault(path, f"'{name}' is no name; use letters, digits and _, and begin with a letter", whole=False)
            return False
        free = not hasattr(nn.ModuleDict(), name)
        if not free:
            self.fault(path, f"'{name}' means something to torch modules; choose another name", whole=False)
        return free

    def _settings(self, key: str, schema: type[BaseModel]) -> Any:
        given = self.raw.get(key)
        return self._validate(key, schema, {} if given is None else given, None)

    def _vision(self) -> dict[str, TowerConfig]:
        given = self.raw.get("vision")
        if not isinstance(given, Mapping):
            absent = "missing; name an encoder, for example `vision: {model: openai/clip-vit-large-patch14}`"
            wrong = f"given {shown(given)}; wants a mapping with `model:`, or several of them by name"
            self.fault("vision", absent if given is None else wrong, whole=False)
            return {}
        found = {}
        for name, tower in encoders_of(given).items():
            if name in (BATCH, DECODER):
                self.fault(f"vision.{name}", f"'{name}' is a reserved name; call the encoder something else")
            elif not self._name(f"vision.{name}", name):
                continue
            found[name] = self._typed(f"vision.{name}" if by_name(given) else "vision", "vision", tower, "hf")
        return found

    def _nodes(self) -> dict[str, Node]:
        given = self.raw.get("graph")
        if not isinstance(given, Mapping) or not given:
            wrong = f"given {shown(given)}; wants a mapping of nodes" if given else "missing; name its nodes"
            self.fault("graph", wrong, whole=False)
            return {}
        nodes = {name: self._node(name, node) for name, node in given.items() if self._name(f"graph.{name}", name)}
        return {name: node for name, node in nodes.items() if node is not None}

    def _node(self, name: str, given: Any) -> Node | None:
        path = f"graph.{name}"
        if not isinstance(given, Mapping):
            self.fault(path, f"given {shown(given)}; wants a mapping with `type:`", whole=False)
            return None
        fields = dict(given)
        role = fields.pop("role", name)
        inputs = self._inputs(name, fields.pop("inputs", None))
        roles = [known for known in self.registry.roles() if known not in ("vision", "decoder", "data")]
        if role not in roles:
            hint = did_you_mean(role, roles)
            what = f"'{role}' is no role" if isinstance(role, str) else f"role is {shown(role)}, which is none"
            known = f"Roles: {listing(roles)}{self.registry.unloaded()}"
            self.fault(path, f"{what}{hint} Name the node after its role, or add `role:`. {known}", whole=False)
            return None
        config = self._typed(path, role, fields)
        return Node(name, config, inputs) if isinstance(config, ComponentConfig) else None

    def _inputs(self, name: str, given: Any) -> dict[str, tuple[str, ...]]:
        path = f"graph.{name}"
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.fault(f"{path}.inputs", f"given {shown(given)}; wants a mapping of `port: node` or `port: node.port`")
            return {}
        found = {}
        for port, wires in given.items():
            texts = [wires] if isinstance(wires, str) else wires
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
                self.fault(f"{path}.inputs.{port}", f"given {shown(wires)}; wants a node's name, node.port, or a list of them")
                self.unsure.add(name)
                continue
            found[port] = tuple(texts)
        return found

    def _typed(self, path: str, role: str, given: Any, default: str | None = None) -> Any:
        """A config whose class is named by `type`."""
        unread = role == "data"  # by the graph
        if not isinstance(given, Mapping):
            wrong = f"given {shown(given)}; wants a mapping with `{'model' if default else 'type'}:`"
            self.fault(path, f"missing{_EXAMPLES.get(role, '')}" if given is None else wrong, whole=unread and given is not None)
            return None
        kind = given.get("type", default)
        if not isinstance(kind, str):
            types = listing(self.registry.types(role))
            wrong = f"missing; installed: {types}" if kind is None else f"given {shown(kind)}; installed: {types}"
            self.fault(f"{path}.type", wrong, whole=unread)
            return None
        try:
            schema = self.registry.find(role, kind)
        except (KeyError, PluginError) as error:
            self.fault(f"{path}.type", str(error.args[0]), whole=unread)
            return None
        found = self._validate(path, schema, {**given, "type": kind}, None if role == "data" else path.split(".")[-1])
        if getattr(found, "rows_have_choices", False) and found.metric in LIKELIHOOD:
            try:
                choices: Any = self.registry.find("data", "choices")
                found._chooser = choices.chooser_of(found)
            except (KeyError, PluginError) as error:
                self.fault(f"{path}.metric", str(error.args[0]), whole=unread)
        return found

    def _validate(self, path: str, schema: type[BaseModel], given: Any, owner: str | None) -> Any:
        """Validate, report each error, and go on without the faulty fields, so that later checks still run.

        owner: the node or tower whose sizes are then in doubt; None for sections that the graph does not depend on.
        """
        if not isinstance(given, Mapping):
            self.fault(path, f"given {shown(given)}; wants a mapping of fields")
            return None
        try:
            return schema.model_validate(dict(given))
        except ValidationError as error:
            found = faults(error.errors(), given, schema)
        self.faults += [Fault(".".join([path, *place]), message) for place, message in found.items()]
        self.unsure |= {owner} - {None}
        wrong = {place[0] for place in found if place}
        try:
            return schema.model_validate({key: value for key, value in given.items() if str(key) not in wrong})
        except ValidationError:
            self.whole = self.whole and owner is None
            return None


def parse_data(raw: Any, source: str, registry: Registry) -> Any:
    """A recipe's `data` section alone. Raises: RecipeError listing every fault."""
    parser = Parser({}, source, registry)
    config = parser._typed("data", "data", raw)
    if parser.faults:
        raise RecipeError(parser.faults, source)
    return config


def _leaves(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of all that holds nothing further."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        path, inner = waiting.pop()
        if isinstance(inner, Mapping):
            waiting += [((*path, str(key)), item) for key, item in inner.items()]
        elif isinstance(inner, (list, tuple)):
            waiting += [((*path, str(place)), item) for place, item in enumerate(inner)]
        else:
            yield path, inner


_EXAMPLES = {
    "decoder": "; name a language model, for example `decoder: {model: huggyllama/llama-7b}`",
    "vision": "; name an encoder, for example `{model: openai/clip-vit-large-patch14}`",
}
