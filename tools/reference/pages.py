"""The recipe reference and the component reference, made from the registered configs and their docstrings."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

from dehvf_kit_scaffold.schema import TOWERS
from pydantic import BaseModel

from dehvf_kit.api.registry import Registry
from dehvf_kit.recipe.parser import Published
from dehvf_kit.recipe.sections import GenerationConfig, TrainingConfig
from tools.reference.fields import field_table

GENERATED = "<!-- Written by `python -m tools.reference`; edits by hand are lost. -->"
NOT_IN_GRAPH = (*TOWERS, "data")
ATTACHES = {
    "decoder": "Adds hooks to the decoder.",
    "vision": "Adds hooks to the vision encoder.",
    "input": "Adds tokens to the decoder's input.",
}


def recipe_page(registry: Registry) -> str:
    """Every section of a recipe and every field in it."""
    lines = [
        "# Recipe reference",
        "",
        GENERATED,
        "",
        "Every field of every section. `dehvf-kit show RECIPE` prints a recipe with all defaults filled in; "
        "`dehvf-kit check RECIPE` reports all errors. Plugins add types; `dehvf-kit list ROLE` shows the installed ones.",
        "",
        "| section | content |",
        "|---|---|",
        "| `extends` | a parent recipe, as a path relative to this file; `recipes/NAME` also finds the kit's own |",
        "| `name`, `description` | used in messages, folders and tables |",
        "| [`published`](#published) | the published figures for this recipe |",
        "| [`vision`](#vision) | the frozen encoder, or several with names |",
        "| [`decoder`](#decoder) | the frozen language model |",
        "| `graph` | the components by node name, see the [component reference](component_reference.md) |",
        "| [`data`](#data) | the data set, its prompt and its splits |",
        "| [`training`](#training) | optimisation |",
        "| [`generation`](#generation) | defaults of `generate` |",
        "",
        *_section("published", Published),
    ]
    for role in (*TOWERS, "data"):
        lines += [f"## {role}", ""]
        for kind in registry.types(role):
            config = registry.configs[role, kind]
            lines += [f"### `type: {kind}`" + (" (the default)" if role in TOWERS else ""), "", docstring(config), ""]
            lines += [field_table(config), ""]
    lines += [*_section("training", TrainingConfig), *_section("generation", GenerationConfig)]
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, config: type[BaseModel]) -> list[str]:
    return [f"## {name}", "", docstring(config), "", field_table(config), ""]


def component_page(registry: Registry) -> str:
    """Every component by role: what it computes, its ports, its fields, its source."""
    lines = [
        "# Component reference",
        "",
        GENERATED,
        "",
        "A node of `graph:` is named after its role, or states it with `role:`. Ports are `name: axis axis`; `name?` may stay "
        "unconnected, `name*` takes several wires. Axes and values are explained in [plugins/README.md](../plugins/README.md).",
        "",
    ]
    for role in registry.roles():
        if role not in NOT_IN_GRAPH:
            lines += [f"## {role}", ""]
            for kind in registry.types(role):
                lines += [*_component(role, kind, registry.configs[role, kind]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _component(role: str, kind: str, config: type[BaseModel]) -> Iterator[str]:
    yield from (f"### {role}: `{kind}`", "", docstring(config), "")
    about = sys.modules[config.__module__].__doc__ or ""
    if source := re.search(r"^Source: .*?(?=\n\n|\Z)", inspect.cleandoc(about), re.MULTILINE | re.DOTALL):
        yield from (escaped(" ".join(source.group().split())), "")
    if attaches := ATTACHES.get(getattr(config, "attaches", "")):
        yield from (attaches, "")
    for way in ("takes", "gives"):
        if ports := getattr(config, way, ()):
            yield f"- {way} " + ", ".join(f"`{port}`" for port in ports)
    yield from ("", field_table(config), "", f"`{config.__module__.replace('.', '/')}.py`")


def docstring(config: type[BaseModel]) -> str:
    """A class's docstring as Markdown."""
    return escaped(inspect.cleandoc(config.__doc__ or ""))


def escaped(text: str) -> str:
    """Text in which Markdown sees no markup but `code` and **bold**."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([_\[\]<>])", r"\\\1", part) for part in parts)
