"""Fields of a config class as a Markdown table, read from its JSON Schema: what may be given, the default, the meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dehvf_kit_scaffold.schema import Schema, inlined
from pydantic import BaseModel

KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
}
LIMITS = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "exclusiveMaximum": "< {}"}


def field_table(config: type[BaseModel]) -> str:
    """A table of all fields but `type`, nested ones with dotted names; a sentence where there are none."""
    raw = config.model_json_schema()
    rows = list(_rows(inlined(raw, raw.pop("$defs", {})), ""))
    if not rows:
        return "No fields."
    lines = ["| field | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _rows(schema: Schema, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        if name == "type" and not prefix:
            continue
        path = f"{prefix}{name}"
        if "properties" in field:
            yield from _rows(field, f"{path}.")
            continue
        default = "required" if name in required else f"`{_plain(field.get('default'))}`"
        yield f"`{path}`", cell(value_kind(field)), cell(default), cell(field.get("description", ""))


def value_kind(field: Mapping[str, Any]) -> str:
    """What a field takes, in words: `whole number >= 1`, `auto, sdpa or xformers`, `list of 2 numbers`."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(value_kind(option) for option in field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{_plain(option)}`" for option in field["enum"])
    if "const" in field:
        return f"`{_plain(field['const'])}`"
    kind = field.get("type")
    if kind == "array":
        items = field.get("prefixItems") or [field.get("items", {})]
        count = f"{len(field['prefixItems'])} of " if "prefixItems" in field else ""
        return f"list of {count}{value_kind(items[0])}"
    limits = [form.format(f"{field[key]:g}") for key, form in LIMITS.items() if key in field]
    return " ".join([KINDS.get(str(kind), "anything"), *limits])


def _plain(value: Any) -> str:
    """A value as a recipe writes it."""
    return value if isinstance(value, str) and value and "\n" not in value else json.dumps(value, ensure_ascii=False)


def cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
