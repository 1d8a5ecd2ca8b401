"""(role, type) -> config class, and base-model sources by name; duplicates are refused with both origins named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

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
    """What the built-ins and the installed plugins offer."""

    configs: dict[tuple[str, str], type[BaseModel]] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)

    def register(self, config: type[BaseModel]) -> None:
        """Add a config class under its role and its `type` default. Raises: DehvfError for a duplicate or nameless class."""
        role, kind = getattr(config, "role", ""), type_name(config)
        where = f"{config.__module__}.{config.__qualname__}"
        if not role or not kind:
            raise DehvfError(f"{where}: a config class needs a `role` and a `type: Literal['...'] = '...'`")
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
                f"no role is named '{role}'{did_you_mean(role, self.roles())} Roles: {listing(self.roles())}"
            )
        if (role, kind) not in self.configs:
            types = self.types(role)
            raise KeyError(f"no {role} is named '{kind}'{did_you_mean(kind, types)} Installed: {listing(types)}")
        return self.configs[role, kind]


def type_name(config: type[BaseModel]) -> str:
    """The `type` a recipe writes for this class, or an empty string where it declares none."""
    info = config.model_fields.get("type")
    if info is None:
        return ""
    names = get_args(info.annotation)
    return str(names[0]) if names else str(info.default or "")
