"""(role, type) -> config class, and base-model sources by name; duplicates are refused with both origins named."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel

from dehvf_kit.api.cost_formulas import CostFormula
from dehvf_kit.api.plugin_code import DEBUG
from dehvf_kit.errors import DehvfError, PluginError, did_you_mean, listing, shown

PLACE = re.compile(r"\w+(\.\w+)*:\w+")
"""A class by its place: `package.module:Class`."""
IN_PLUGINS = {
    **dict.fromkeys([("data", one) for one in ("scienceqa", "coco_captions", "choices")], "dehvf-kit-benchmarks"),
    **dict.fromkeys([("data", one) for one in ("llava", "messages", "mixture", "stream", "table")], "dehvf-kit-streams"),
}
"""Types of the kit's own recipes that live in plugins, for the message where a plugin is missing."""


@dataclass(frozen=True)
class Source:
    """A base model that a plugin supplies: its config at once, its folder on demand, its licence as its owner writes it.

    preprocessor: of an encoder, the content of its `preprocessor_config.json`.
    """

    name: str
    config: Callable[[], Mapping[str, Any]]
    path: Callable[[], Path]
    summary: str
    licence: str = ""
    preprocessor: Callable[[], Mapping[str, Any]] | None = None


@dataclass
class Registry:
    """What the built-ins and the installed plugins offer; `broken` says of what could not be loaded why.

    A config is registered as a class, or as `"module:Class"` with its role and type: such a class is imported when it is
    asked for, by `find` or `configs`.
    """

    entries: dict[tuple[str, str], type[BaseModel] | str] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    cost_formulas: list[CostFormula] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def register(self, config: type[BaseModel] | str, *, role: str = "", type: str = "") -> None:
        """Add a config class under its role and type.

        Args:
            config: the class, or where it is: `"package.module:Class"`.
            role: the role of a class given by its place; a class given itself declares its own.
            type: its `type` in a recipe, likewise.

        Raises:
            DehvfError: for a duplicate, a class without role or type, or a place that is not `module:Class`.
        """
        if isinstance(config, str):
            if not PLACE.fullmatch(config) or not role or not type:
                raise DehvfError(
                    f"register({shown(config)}, role={shown(role)}, type={shown(type)}): wants 'package.module:Class', "
                    "a role and a type, or a config class alone"
                )
        else:
            role, type = checked(config)
        known, where = self.entries.get((role, type)), place_of(config)
        if known is not None and place_of(known) != where:
            raise DehvfError(f"two classes are registered as {role} '{type}': {place_of(known)} and {where}; rename one of them")
        if known is None or not isinstance(config, str):
            self.entries[role, type] = config

    def register_source(
        self,
        name: str,
        config: Callable[[], Mapping[str, Any]],
        path: Callable[[], Path],
        summary: str,
        licence: str = "",
        preprocessor: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """Add a base model under a name that recipes may use.

        Args:
            name: what a recipe gives as `model`.
            config: gives its config as transformers' JSON holds it.
            path: gives the folder of its checkpoint, downloaded or made at the first call.
            summary: a line for `dehvf-kit list`.
            licence: of its weights.
            preprocessor: gives an encoder's preprocessor config.

        Raises: DehvfError for a duplicate.
        """
        if name in self.sources:
            raise DehvfError(f"two plugins supply a base model named '{name}'; uninstall one of them")
        self.sources[name] = Source(name, config=config, path=path, summary=summary, licence=licence, preprocessor=preprocessor)

    @property
    def configs(self) -> dict[tuple[str, str], type[BaseModel]]:
        """All classes by (role, type), each imported; those that cannot be are excluded and noted in `broken`."""
        found = {}
        for role, kind in list(self.entries):
            try:
                found[role, kind] = self._load(role, kind)
            except PluginError as error:
                self.broken[f"{role} '{kind}'"] = str(error)
        return found

    def roles(self) -> list[str]:
        """Every role of which something is registered."""
        return sorted({role for role, _ in self.entries})

    def types(self, role: str) -> list[str]:
        """Every type registered under a role."""
        return sorted(kind for known, kind in self.entries if known == role)

    def find(self, role: str, kind: str) -> type[BaseModel]:
        """The config class of a role and type, such as "fuser" and "mean".

        Args: role, kind (the recipe's `type`).
        Raises:
            KeyError: where there is none, with a message that names what is installed.
            PluginError: where its module cannot be imported, or holds another class than was registered.
        """
        if role not in self.roles():
            raise KeyError(
                f"no role is named '{role}'{did_you_mean(role, self.roles())} Roles: {listing(self.roles())}{self.unloaded()}"
            )
        if (role, kind) not in self.entries:
            types = self.types(role)
            others = [other for other, known in self.entries if known == kind]
            elsewhere = f"; '{kind}' is registered under the role {listing(others)}" if others else ""
            if (role, kind) in IN_PLUGINS:
                elsewhere += f"; '{kind}' comes with the plugin {IN_PLUGINS[role, kind]}"
            raise KeyError(
                f"no {role} is named '{kind}'{did_you_mean(kind, types)} Installed: {listing(types)}{elsewhere}{self.unloaded()}"
            )
        return self._load(role, kind)

    def _load(self, role: str, kind: str) -> type[BaseModel]:
        config = self.entries[role, kind]
        if isinstance(config, str):
            self.entries[role, kind] = config = imported(config, role, kind)
        return config

    def unloaded(self) -> str:
        """What to add where something is not found: the plugins that could not be loaded, which may have had it."""
        return "".join(f"; plugin {' '.join(why.split())} (could not be loaded)" for why in self.broken.values())


def imported(place: str, role: str, kind: str) -> type[BaseModel]:
    """The class at `package.module:Class`. Raises: PluginError naming the place and the reason."""
    module, _, name = place.partition(":")
    try:
        with redirect_stdout(sys.stderr):
            config = getattr(import_module(module), name)
        if checked(config) != (role, kind):
            own_role, own_type = checked(config)
            raise DehvfError(f"the class says role '{own_role}' and type '{own_type}'")
    except Exception as error:  # whatever a plugin's module raises
        if os.environ.get(DEBUG):
            raise
        reason = str(error) if isinstance(error, DehvfError) else f"{type(error).__name__}: {error}"
        raise PluginError(
            f"{role} '{kind}' is registered as {place}, which cannot be used: {' '.join(reason.split())}; "
            f"{DEBUG}=1 shows the traceback"
        ) from error
    return cast("type[BaseModel]", config)


def checked(config: object) -> tuple[str, str]:
    """A config class's role and type. Raises: DehvfError for what cannot be registered."""
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        raise DehvfError(f"register wants a config class, got {_described(config)}")
    role, kind = getattr(config, "role", ""), type_name(config)
    where = place_of(config)
    if not role or not kind:
        raise DehvfError(f"{where}: a config class needs a `role` and a `type: Literal['...'] = '...'`")
    for ports in ("takes", "gives"):
        if isinstance(getattr(config, ports, ()), str):
            raise DehvfError(f'{where}: `{ports}` is a text; wants a tuple of them: ("name: axis axis",)')
    strength = getattr(config, "strength", "")
    if strength and strength not in config.model_fields:
        fields = list(config.model_fields)
        raise DehvfError(
            f"{where}: `strength` is '{strength}', none of its fields{did_you_mean(strength, fields)} Fields: {listing(fields)}"
        )
    return role, kind


def place_of(config: type[BaseModel] | str) -> str:
    """Where a class is, as messages write it: `package.module.Class`."""
    return config.replace(":", ".") if isinstance(config, str) else f"{config.__module__}.{config.__qualname__}"


def _described(value: object) -> str:
    """`the class LastFuser`, or `an instance of LastFuserConfig`."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"an instance of {type(value).__name__}"


def type_name(config: type[BaseModel]) -> str:
    """The `type` a recipe writes for this class, or an empty string where it declares none."""
    info = config.model_fields.get("type")
    if info is None:
        return ""
    names = get_args(info.annotation)
    return str(names[0]) if names else str(info.default or "")
