"""`dehvf-kit list`: what is installed, where it comes from, and what each field means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from rich.console import Console
from rich.markup import escape

import dehvf_kit
from dehvf_kit.cli.arguments import Json
from dehvf_kit.cli.console import grid, print_json, section, stdout, waiting
from dehvf_kit.errors import DehvfError, did_you_mean, listing

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from dehvf_kit.recipe.plugin_manager import Plugins

COMPONENTS = Path(dehvf_kit.__file__).parent / "components"


def _builtin_roles() -> list[str]:
    """The roles of the kit itself, for a shell to complete without loading plugins."""
    return sorted(["vision", "decoder", "data", *(file.parent.name for file in COMPONENTS.glob("*/__init__.py"))])


def list_installed(
    role: Annotated[
        str | None,
        typer.Argument(metavar="ROLE", help="Only this role, with every field.", show_default=False, autocompletion=_builtin_roles),
    ] = None,
    as_json: Json = False,
) -> None:
    """List everything, or one role with its fields. Raises: DehvfError for an unknown role."""
    with waiting("Loading plugins", plain=True):
        from dehvf_kit.recipe.plugin_manager import plugins

        loaded = plugins()
    roles = loaded.registry.roles()
    if role is not None and role not in roles:
        raise DehvfError(f"list: no role is named '{role}'{did_you_mean(role, roles)} Roles: {listing(roles)}")
    if as_json:
        print_json(_facts(loaded, role))
        return
    console = stdout()
    if role is None:
        _print_all(console, _facts(loaded, None))
    else:
        _print_role(console, role, _facts(loaded, role)["components"])


def _facts(loaded: Plugins, role: str | None) -> dict[str, Any]:
    """Everything the command prints, as plain data; with a role, that role's components and their fields alone."""
    components = []
    for known, kind in loaded.registry.configs:
        if role not in (None, known):
            continue
        config = loaded.registry.configs[known, kind]
        entry: dict[str, Any] = {
            "role": known,
            "type": kind,
            "origin": origin(loaded, config.__module__),
            "summary": _first_line(config),
        }
        entry["takes"] = list(getattr(config, "takes", ()))
        entry["gives"] = list(getattr(config, "gives", ()))
        entry["fields"] = [_field(name, info) for name, info in config.model_fields.items() if name != "type"]
        components.append(entry)
    if role is not None:
        return {"components": components}
    sources = loaded.registry.sources.values()
    return {
        "components": components,
        "models": [
            {"name": source.name, "origin": origin(loaded, source.config.__module__), "summary": source.summary}
            for source in sources
        ],
        "plugins": [{"name": name, "origin": place} for name, place in loaded.origins.items()],
        "broken_plugins": [{"name": name, "reason": reason} for name, reason in loaded.broken.items()],
    }


def origin(loaded: Plugins, module: str) -> str:
    """The plugin a module belongs to: the one whose module shares its top package."""
    top = module.partition(".")[0]
    for name, plugin in loaded.manager.list_name_plugin():
        if plugin is not None and getattr(plugin, "__name__", "").partition(".")[0] == top:
            return name
    return module


def _first_line(config: type[BaseModel]) -> str:
    return (config.__doc__ or "").strip().splitlines()[0] if config.__doc__ else ""


def _field(name: str, info: FieldInfo) -> dict[str, Any]:
    from pydantic import BaseModel
    from pydantic_core import PydanticUndefined

    required = info.is_required()
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    default = None if required else info.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json")
    if isinstance(default, Path):
        default = str(default)
    return {
        "name": name,
        "required": required,
        "default": None if default is PydanticUndefined else list(default) if isinstance(default, tuple) else default,
        "description": info.description or (f"one of {', '.join(map(str, choices))}" if choices else ""),
    }


def _print_all(console: Console, found: dict[str, Any]) -> None:
    parts: dict[str, list[tuple[str, str, str]]] = {}
    for entry in found["components"]:
        parts.setdefault(entry["role"], []).append((entry["type"], entry["origin"], entry["summary"]))
    parts["base models"] = [(entry["name"], entry["origin"], entry["summary"]) for entry in found["models"]]
    parts["plugins"] = [(entry["name"], entry["origin"], "") for entry in found["plugins"]]
    parts["broken plugins"] = [(entry["name"], "", entry["reason"]) for entry in found["broken_plugins"]]
    widest = max(len(name) for rows in parts.values() for name, _, _ in rows)
    for title, rows in parts.items():
        if not rows:
            continue
        section(console, title)
        table = grid("left", "left", "left")
        table.columns[1].min_width = widest
        for name, origin_, text in rows:
            colour = "red" if title == "broken plugins" else "cyan"
            table.add_row("", f"[{colour}]{escape(name)}[/]", f"[dim]{escape(origin_)}[/]", escape(text))
        console.print(table)
    console.print("\n[dim]Ports and fields of one role: dehvf-kit list fuser[/]")


def _print_role(console: Console, role: str, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        section(console, f"{role}: {{type: {entry['type']}}}", entry["origin"])
        console.print(f"  {escape(entry['summary'])}")
        ports = grid("left", "left")
        for way in ("takes", "gives"):
            for number, port in enumerate(entry[way]):
                ports.add_row("", f"[dim]{way if number == 0 else ''}[/]", escape(port))
        if entry["takes"] or entry["gives"]:
            console.print(ports)
        table = grid("left", "left", "left")
        for field in entry["fields"]:
            default = "[red]required[/]" if field["required"] else escape(_short(field["default"]))
            table.add_row("", f"[cyan]{field['name']}[/]", default, escape(field["description"]))
        console.print(table)


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower() if value is not None else "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    return repr(value) if isinstance(value, str) and (not value or "\n" in value) else str(value)
