"""Loads the built-ins, the installed plugins and `--plugin` files, all through the same hooks."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import lru_cache, wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pluggy

import dehvf_kit.api.hookspecs as hookspecs
import dehvf_kit.recipe.builtin_plugin as builtin_plugin
from dehvf_kit.api.hookspecs import PROJECT
from dehvf_kit.api.registry import CommandTable, Registry, raised
from dehvf_kit.errors import DehvfError, did_you_mean, listing
from dehvf_kit.recipe.files import encoders_of
from dehvf_kit.utils.atomic import is_file

FILE_MODULE = "dehvf_kit_plugin_"
HOOKS = (
    "register_components",
    "register_sources",
    "register_cost_formulas",
    "register_ffn_overrides",
    "register_vision_overrides",
    "register_commands",
)


@dataclass
class Plugins:
    """What is loaded: the registry, each plugin's origin, and that of each type and base model, as `needs` names them."""

    registry: Registry = field(default_factory=Registry)
    commands: CommandTable = field(default_factory=CommandTable)
    origins: dict[str, str] = field(default_factory=dict)
    supplied: dict[str, str] = field(default_factory=dict)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(PROJECT))

    @property
    def broken(self) -> dict[str, str]:
        return self.registry.broken


@lru_cache(maxsize=1)
def plugins() -> Plugins:
    """The plugins of this process, loaded once. A plugin that fails to load is recorded, not fatal."""
    loaded = Plugins()
    loaded.manager.add_hookspecs(hookspecs)
    _add(loaded, builtin_plugin, "built-in", "dehvf-kit")
    for entry in sorted(entry_points(group=PROJECT), key=lambda entry: entry.name):
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        try:
            with redirect_stdout(sys.stderr):
                module = entry.load()
        except (Exception, SystemExit) as error:  # whatever a stranger's plugin raises must not stop the kit
            loaded.broken[entry.name] = f"{origin}: {raised(error)}"
            continue
        try:
            _add(loaded, module, entry.name, origin)
        except (DehvfError, pluggy.PluginValidationError) as error:
            loaded.broken[entry.name] = f"{origin}: {error}"
        except (Exception, SystemExit) as error:
            loaded.broken[entry.name] = f"{origin}: {raised(error)}"
    return loaded


def needs(recipe: Mapping[str, Any]) -> set[str]:
    """The types and base models that a recipe's plain data name, such as `fuser 'mean'`, as `Plugins.supplied` names them."""
    sections = {role: section for role in ("decoder", "data") if isinstance(section := recipe.get(role), Mapping)}
    graph = recipe.get("graph")
    named = graph.items() if isinstance(graph, Mapping) else ()
    nodes = [(node.get("role", name), node) for name, node in named if isinstance(node, Mapping)]
    towers = [("vision", tower) for tower in encoders_of(recipe.get("vision") or {}).values()]
    found = set()
    for role, section in [*sections.items(), *towers, *nodes]:
        if isinstance(section, Mapping):
            found |= {f"{role} '{section.get('type')}'", f"base model '{section.get('model')}'"}
    return found


def load_plugin_file(path: str | Path) -> None:
    """Load a one-file plugin (`--plugin my_file.py`). Raises: DehvfError if it is missing or cannot be loaded."""
    file = Path(os.path.realpath(path))  # which does not raise, as `resolve` does for links in a circle
    if not is_file(file):
        raise DehvfError(f"--plugin {path}: there is no such file")
    known = plugins().manager.get_plugin(file.stem)
    if known is not None:
        if getattr(known, "__file__", None) == str(file):
            return
        raise DehvfError(f"--plugin {path}: a plugin named '{file.stem}' is loaded already; rename the file")
    spec = importlib.util.spec_from_file_location(f"{FILE_MODULE}{file.stem}", file)
    if spec is None or spec.loader is None:
        raise DehvfError(f"--plugin {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
        if not _add(plugins(), module, file.stem, str(path)):
            plugins().manager.unregister(module)
            del plugins().origins[file.stem]
            raise DehvfError("registers nothing; wants a hook such as `@hookimpl def register_components(register): ...`")
    except (DehvfError, pluggy.PluginValidationError) as error:
        del sys.modules[spec.name]
        raise DehvfError(f"--plugin {path}: {error}") from error
    except (Exception, SystemExit) as error:  # the file is the user's own code
        del sys.modules[spec.name]
        raise DehvfError(f"--plugin {path}: {raised(error)}") from error


def loaded_files() -> list[Path]:
    """The one-file plugins of this process, for another process to load."""
    modules = plugins().manager.get_plugins()
    return sorted(Path(module.__file__) for module in modules if module.__name__.startswith(FILE_MODULE))


def _add(loaded: Plugins, module: object, name: str, origin: str) -> int:
    """Register one plugin and call its hooks; what they print goes to standard error. Returns how often they registered something.

    Raises: DehvfError for a misspelt hook, and for duplicates.
    """
    manager = loaded.manager
    manager.register(module, name=name)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        manager.unregister(module)
        wrong = str(error).partition("'")[2].partition("'")[0]
        raise DehvfError(f"unknown hook '{wrong}'{did_you_mean(wrong, HOOKS)} Hooks: {listing(HOOKS)}") from error
    registry = loaded.registry
    before = replace(
        registry, entries=dict(registry.entries), sources=dict(registry.sources), cost_formulas=list(registry.cost_formulas)
    )
    commands = CommandTable(dict(loaded.commands.commands))
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    registered = 0

    def counted(register: Callable[..., None]) -> Callable[..., None]:
        @wraps(register)
        def call(*given: Any, **named: Any) -> None:
            nonlocal registered
            register(*given, **named)
            registered += 1

        return call

    try:
        with redirect_stdout(sys.stderr):
            for hook in HOOKS:
                caller = manager.subset_hook_caller(hook, others)
                if caller.get_hookimpls():
                    caller(register=counted(_register_of(hook, loaded)))
    except (Exception, SystemExit):
        loaded.registry, loaded.commands = before, commands
        manager.unregister(module)
        raise
    loaded.origins[name] = origin
    new = [f"{role} '{kind}'" for role, kind in loaded.registry.entries.keys() - before.entries.keys()]
    new += [f"base model '{model}'" for model in loaded.registry.sources.keys() - before.sources.keys()]
    loaded.supplied |= dict.fromkeys(new, origin)
    return registered


def _register_of(hook: str, loaded: Plugins) -> Callable[..., None]:
    """The function that a hook calls to register something; those of backbones are imported where a plugin has the hook."""
    if hook == "register_ffn_overrides":
        from dehvf_kit.backbones.ffn.overrides import register_ffn_override

        return register_ffn_override
    if hook == "register_vision_overrides":
        from dehvf_kit.backbones.vision.overrides import register_vision_override

        return register_vision_override
    registers: dict[str, Callable[..., None]] = {
        "register_components": loaded.registry.register,
        "register_sources": loaded.registry.register_source,
        "register_cost_formulas": loaded.registry.cost_formulas.append,
        "register_commands": loaded.commands.register,
    }
    return registers[hook]
