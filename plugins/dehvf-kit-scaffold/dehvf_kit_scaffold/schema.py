"""The JSON Schema of recipes, for editors: `python -m dehvf_kit_scaffold.schema` writes it, `--check` says whether it is fresh.

It is generated from the registered configs. The file in `recipes/` knows the built-ins and the data sets of dehvf-kit-streams and
-benchmarks, whatever is installed beside them; `--installed --output FILE` writes one with all plugins of this environment. A
`data.type` that it does not know is let through. Wiring is beyond a schema: `dehvf-kit check` looks at that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dehvf_kit.api.config import ComponentConfig
from dehvf_kit.api.registry import IN_PLUGINS, Registry
from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe import builtin_plugin
from dehvf_kit.recipe.migrations import FORMAT
from dehvf_kit.recipe.parser import Published
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.sections import GenerationConfig, TrainingConfig
from dehvf_kit.utils.atomic import write_output
from dehvf_kit.utils.shipped import HOME

Schema = dict[str, Any]
FILE = HOME / "recipes" / "recipe.schema.json"
TOWERS = ("vision", "decoder")
WIRES = {
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}]
}
INPUTS = {
    "type": "object",
    "description": "wires written out, port: node or port: node.port or a list of them",
    "additionalProperties": WIRES,
}


def builtin_registry() -> Registry:
    """The built-ins and the data sets of the repository's plugins, as far as they are installed."""
    registry, installed = Registry(), plugins().registry.entries
    builtin_plugin.register_components(registry.register)
    registry.entries |= {one: installed[one] for one in IN_PLUGINS if one in installed}
    return registry


def recipe_schema(registry: Registry) -> Schema:
    """JSON Schema of a recipe file with these components.

    A recipe that `extends` another may leave out everything, and may remove or reset a field with null; one that stands
    alone may not. Hence two variants of each definition.
    """
    alone, child = _Variant(registry, child=False), _Variant(registry, child=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of dehvf-kit",
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": "#/$defs/child_recipe"},
        "else": {"$ref": "#/$defs/recipe"},
        "$defs": {**alone.definitions(), **child.definitions()},
    }


class _Variant:
    """The definitions of recipes that stand alone, or of those that extend another (`child`)."""

    def __init__(self, registry: Registry, child: bool) -> None:
        self.registry, self.child = registry, child
        self.prefix = "child_" if child else ""
        self.found: dict[str, Schema] = {}

    def definitions(self) -> dict[str, Schema]:
        """All definitions by name, the recipe's own last."""
        roles = [role for role in self.registry.roles() if role not in (*TOWERS, "data")]
        for role in roles:
            for kind in self.registry.types(role):
                self._component(role, kind)
        for role in (*TOWERS, "data"):
            for kind in self.registry.types(role):
                config = self.registry.configs[role, kind]
                self.found[self._name(role, kind)] = self._settings(config, need_type=role == "data")
        self.found[f"{self.prefix}recipe"] = self._recipe(roles)
        return self.found

    def _recipe(self, roles: list[str]) -> Schema:
        towers = {role: self._any(role, self.registry.types(role)) for role in TOWERS}
        single = {"anyOf": [{"required": ["image"]}, {"required": ["config"]}]}
        several = {"type": "object", "minProperties": 1, "not": single, "additionalProperties": self._nullable(towers["vision"])}
        sections = {
            "format": {"type": "integer", "minimum": 1, "maximum": FORMAT, "description": "version of the recipe language"},
            "name": {"type": "string", "description": "what the recipe is called; its file's name if absent"},
            "description": {"type": "string"},
            "published": {"anyOf": [self._settings(Published), {"type": "null"}]},
            "vision": {"description": "one encoder, or several by name", "anyOf": [towers["vision"], several]},
            "decoder": {"description": "the frozen language model", **towers["decoder"]},
            "graph": self._graph(roles),
            "training": {"anyOf": [self._settings(TrainingConfig), {"type": "null"}]},
            "data": {"anyOf": [self._data(), {"type": "null"}]},
            "generation": {"anyOf": [self._settings(GenerationConfig), {"type": "null"}]},
        }
        if self.child:
            sections = {name: self._nullable(section) for name, section in sections.items()}
            parent = {"type": "string", "minLength": 1, "description": "a parent recipe, as a path beside this file"}
            sections = {"extends": parent, **sections}
        required = [] if self.child else ["vision", "decoder", "graph"]
        return {"type": "object", "properties": sections, "additionalProperties": False, "required": required}

    def _graph(self, roles: list[str]) -> Schema:
        """Nodes by name: one named after a role needs no `role:`, any other one does."""
        named = {
            "anyOf": [
                {
                    "allOf": [
                        self._ref(role, kind),
                        {"properties": {"role": {"const": role}}, "required": [] if self.child else ["role"]},
                    ]
                }
                for role in roles
                for kind in self.registry.types(role)
            ]
        }
        self.found[f"{self.prefix}named_node"] = named
        other = {"$ref": f"#/$defs/{self.prefix}named_node"}
        nodes = {
            role: {"if": {"required": ["role"]}, "then": other, "else": self._any(role, self.registry.types(role))}
            for role in roles
        }
        if self.child:
            nodes = {role: self._nullable(node) for role, node in nodes.items()}
            other = self._nullable(other)
        return {
            "type": "object",
            "description": "the components by name; ports are wired by name, or as `inputs:` says",
            "minProperties": 0 if self.child else 1,
            "properties": nodes,
            "additionalProperties": other,
        }

    def _component(self, role: str, kind: str) -> None:
        config = self.registry.configs[role, kind]
        schema = self._settings(config, need_type=True)
        if issubclass(config, ComponentConfig):
            role_name = {"type": "string", "description": "the node's role; its name if absent"}
            inputs = self._nullable(INPUTS) if self.child else INPUTS
            schema["properties"] = {"role": role_name, **schema["properties"], "inputs": inputs}
        self.found[self._name(role, kind)] = schema

    def _data(self) -> Schema:
        """Built-in data sets by their fields, others by having another `type`."""
        known = self.registry.types("data")
        other = {"type": "object", "properties": {"type": {"type": "string", "not": {"enum": known}}}, "required": ["type"]}
        return {"description": "the data set", "anyOf": [*(self._ref("data", kind) for kind in known), other]}

    def _settings(self, config: type[BaseModel], need_type: bool = False) -> Schema:
        """Schema of one config class, with the classes it nests inlined."""
        raw = config.model_json_schema()
        schema = inlined(raw, raw.pop("$defs", {}))
        schema = _slim(self._lenient(schema) if self.child else schema)
        required = [name for name in schema.get("required", []) if name != "type"]
        schema["required"] = [] if self.child else (["type"] if need_type else []) + required
        return schema

    def _lenient(self, schema: Schema) -> Schema:
        """Nothing required and every field nullable, at any depth; `type` stays what it is."""
        if "properties" not in schema:
            return schema
        fields = {
            name: field if name == "type" else self._nullable(self._lenient(field)) for name, field in schema["properties"].items()
        }
        return {**schema, "properties": fields, "required": []}

    def _any(self, role: str, kinds: list[str]) -> Schema:
        if len(kinds) == 1:
            return self._ref(role, kinds[0])
        return {"anyOf": [self._ref(role, kind) for kind in kinds]}

    def _ref(self, role: str, kind: str) -> Schema:
        return {"$ref": f"#/$defs/{self._name(role, kind)}"}

    def _name(self, role: str, kind: str) -> str:
        return f"{self.prefix}{role}.{kind}"

    @staticmethod
    def _nullable(schema: Schema) -> Schema:
        return {"anyOf": [schema, {"type": "null"}]}


def inlined(value: Any, definitions: Mapping[str, Schema]) -> Any:
    """The same schema with references to its own definitions replaced by them."""
    if isinstance(value, list):
        return [inlined(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    reference = value.get("$ref")
    if reference is not None:
        rest = {key: item for key, item in value.items() if key != "$ref"}
        return {**inlined(definitions[reference.rpartition("/")[2]], definitions), **inlined(rest, definitions)}
    return {key: inlined(item, definitions) for key, item in value.items()}


def _slim(value: Any, inside: bool = False) -> Any:
    """Without pydantic's generated titles, docstrings cut to a line. `inside`: value maps field names."""
    if isinstance(value, list):
        return [_slim(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _slim(item, key == "properties" and not inside) for key, item in value.items() if inside or key != "title"}
    if not inside and isinstance(kept.get("description"), str):
        kept["description"] = kept["description"].split("\n")[0]
    return kept


def schema_text(registry: Registry) -> str:
    """The schema as the text of a file."""
    return json.dumps(recipe_schema(registry), indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write or check the schema file. Returns an exit status: 1 for a stale file."""
    parser = argparse.ArgumentParser(prog="python -m dehvf_kit_scaffold.schema", description="Write the JSON Schema of recipes.")
    parser.add_argument("--output", type=Path, default=FILE, metavar="FILE", help="where to write it; recipes/recipe.schema.json")
    parser.add_argument("--installed", action="store_true", help="with the installed plugins' components")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is missing or stale")
    given = parser.parse_args(arguments)
    text = schema_text(plugins().registry if given.installed else builtin_registry())
    if given.check:
        if given.output.is_file() and given.output.read_text(encoding="utf-8") == text:
            print(f"{given.output}: fresh")
            return 0
        print(f"{given.output}: missing or stale; run python -m dehvf_kit_scaffold.schema", file=sys.stderr)
        return 1
    try:
        write_output(given.output, text)
    except DehvfError as error:
        parser.error(str(error))
    print(f"wrote {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
