"""(role, type) -> config class, and base-model sources by name; duplicates are refused with both origins named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from dehvf_kit.api.cost_formulas import CostFormula
from dehvf_kit.errors import DehvfError, did_you_mean, listing


@dataclass(frozen=True)
class Source:
    """A base model that a plugin supplies: its config at once, its folder on demand, its licence as its owner writes it."""

    name: str
    config: Callable[[], Mapping[str, Any]]
    path: Callable[[], Path]
    summary: str
    licence: str = ""


@dataclass
class Registry:
    """What the built-ins and the installed plugins offer; `broken` says of plugins that could not be loaded why."""

    configs: dict[tuple[str, str], type[BaseModel]] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    cost_formulas: list[CostFormula] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def register(self, config: type[BaseModel]) -> None:
        """Add a config class under its role and its `type` default. Raises: DehvfError for a duplicate or nameless class."""
        if not (isinstance(config, type) and issubclass(config, BaseModel)):
            raise DehvfError(f"register wants a config class, got {_described(config)}")
        role, kind = getattr(config, "role", ""), type_name(config)
        where = f"{config.__module__}.{config.__qualname__}"
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
        known = self.configs.get((role, kind))
        if known is not None and known is not config:
            raise DehvfError(
                f"two classes are registered as {role} '{kind}': {known.__module__}.{known.__qualname__} and {where}; "
                "rename one of them"
            )
        self.configs[role, kind] = config

    def register_source(
        self,
        name: str,
        config: Callable[[], Mapping[str, Any]],
        path: Callable[[], Path],
        summary: str,
        licence: str = "",
    ) -> None:
        """Add a base model under a name that recipes may use. Raises: DehvfError for a duplicate."""
        if name in self.sources:
            raise DehvfError(f"two plugins supply a base model named '{name}'; uninstall one of them")
        self.sources[name] = Source(name, config, path, summary, licence)

    def roles(self) -> list[str]:
        return sorted({role for role, _ in self.configs})

    def types(self, role: str) -> list[str]:
        return sorted(kind for known, kind in self.configs if known == role)

    def find(self, role: str, kind: str) -> type[BaseModel]:
        """The config class of a role and type. Raises: KeyError with a message that names what is installed."""
        if role not in self.roles():
            raise KeyError(
                f"no role is named '{role}'{did_you_mean(role, self.roles())} Roles: {listing(self.roles())}{self.unloaded()}"
            )
        if (role, kind) not in self.configs:
            types = self.types(role)
            others = [other for other, known in self.configs if known == kind]
            elsewhere = f"; '{kind}' is registered under the role {listing(others)}" if others else ""
            raise KeyError(
                f"no {role} is named '{kind}'{did_you_mean(kind, types)} Installed: {listing(types)}{elsewhere}{self.unloaded()}"
            )
        return self.configs[role, kind]

    def unloaded(self) -> str:
        """What to add where something is not found: the plugins that could not be loaded, which may have had it."""
        return "".join(f"; plugin {' '.join(why.split())} (could not be loaded)" for why in self.broken.values())


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
