"""What the kit and its plugins register, and how the kit calls their code.

(role, type) -> config class, base-model sources and commands by name; duplicates are refused with both origins named. Whatever is
raised in code that a plugin brought becomes one line that names the plugin's own place. The kit's own components, towers and data
sets keep their tracebacks, since what goes wrong in them is the kit's to mend.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from dehvf_kit.errors import DehvfError, PluginError, did_you_mean, listing, shown

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dehvf_kit.api.cost_formulas import CostFormula

DEBUG = "DEHVF_KIT_DEBUG"
"""The environment variable under which errors of plugins are left as they were raised."""
COMMAND_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
COMMAND_TARGET = re.compile(r"[\w.]+:\w+")
PLACE = r"\w+(\.\w+)*:\w+"
"""A class by its place: `package.module:Class`."""
IN_PLUGINS = {
    **dict.fromkeys([("data", one) for one in ("scienceqa", "coco_captions", "choices")], "dehvf-kit-benchmarks"),
    **dict.fromkeys([("data", one) for one in ("llava", "messages", "mixture", "stream", "table")], "dehvf-kit-streams"),
}
"""Types of the kit's own recipes that live in plugins, for the message where a plugin is missing."""


class Source(NamedTuple):
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
            if not re.fullmatch(PLACE, config) or not role or not type:
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
    from pydantic import BaseModel

    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        raise DehvfError(f"register wants a config class, got {_described(config)}")
    role, kind = getattr(config, "role", ""), type_name(config)
    where = place_of(config)
    if not role or not kind:
        raise DehvfError(f"{where}: a config class needs a `role` and a `type: Literal['...'] = '...'`")
    for ports in ("takes", "gives"):
        if isinstance(getattr(config, ports, ()), str):
            raise DehvfError(f'{where}: `{ports}` is a text; wants a tuple of them: ("name: axis axis",)')
        if bad := [port for port in getattr(config, ports, ()) if ":" not in port]:
            raise DehvfError(f'{where}: `{ports}` holds {shown(bad[0])}; wants "name: axis axis"')
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


class Command(NamedTuple):
    """One command. target: its Typer function as `module:function`; help: the line that `--help` shows."""

    name: str
    target: str
    help: str


@dataclass
class CommandTable:
    """The commands known so far, in the order in which `--help` lists them."""

    commands: dict[str, Command] = field(default_factory=dict)

    def register(self, name: str, target: str, help: str) -> None:
        """Add a command.

        Args:
            name: what is typed after `dehvf-kit`, lower-case words joined by hyphens.
            target: `module:function`, a Typer function (or a `typer.Typer`, for a group of commands).
            help: one line for `dehvf-kit --help`.

        Raises:
            DehvfError: for a name or target of another form, and for a name that is taken.
        """
        if not COMMAND_NAME.fullmatch(str(name)):
            raise DehvfError(f"register_commands: '{name}' cannot name a command; wants lower-case words such as my-command")
        if not COMMAND_TARGET.fullmatch(str(target)):
            raise DehvfError(f"register_commands: {name}: given the target '{target}'; wants module:function")
        known = self.commands.get(name)
        if known is not None and known.target != target:
            raise DehvfError(f"two commands are named '{name}': {known.target} and {target}; rename one of them")
        self.commands[name] = Command(name, target, help)


@contextmanager
def plugin_code(owner: object, where: str = "") -> Iterator[None]:
    """Inside, an exception out of a plugin's code becomes a PluginError; a DehvfError passes, a ConfigMismatchError gains `where`.

    Args:
        owner: the config whose code is called.
        where: its place in the recipe (`graph.fuser`), where the caller does not say it.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        wrapped = wrapped_as(error, owner, where)
        if wrapped is None:
            raise
        raise wrapped from error


def raised(error: BaseException) -> str:
    """An exception in one line: its class and message; of `sys.exit` its exit code."""
    if isinstance(error, SystemExit):
        return f"SystemExit: it calls sys.exit({error.code!r}), which would end every command"
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def wrapped_as(error: BaseException, owner: object, where: str = "") -> PluginError | None:
    """The PluginError to raise from an exception; None where it should go on as it is."""
    kind = type(owner)
    package, kit = kind.__module__.partition(".")[0], __name__.partition(".")[0]
    ours = isinstance(error, DehvfError) or kit in (package, type(error).__module__.partition(".")[0])
    if where and type(error).__name__ == "ConfigMismatchError":
        return PluginError(f"{where}: {error}")
    if ours or _out_of_memory(error) or os.environ.get(DEBUG):
        return None
    name = getattr(owner, "type", kind.__name__)
    place = _place(error, kind, package)
    message = f"the plugin's '{name}' raised {raised(error)} ({place}); {DEBUG}=1 shows the traceback"
    return PluginError(f"{where}: {message}" if where else message)


def _place(error: BaseException, kind: type, package: str) -> str:
    """`file.py:12, in build`: the innermost frame in the plugin, else the file of its config class."""
    frames = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package
    ]
    if frames:
        code, line = frames[-1]
        return f"{code.co_filename}:{line}, in {code.co_name}"
    try:
        return inspect.getfile(kind)
    except (TypeError, OSError):
        return kind.__module__


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
