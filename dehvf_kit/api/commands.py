"""Commands of `dehvf-kit` by name, each loaded when it runs; duplicates are refused with both origins named."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dehvf_kit.errors import DehvfError

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
TARGET = re.compile(r"[\w.]+:\w+")


@dataclass(frozen=True)
class Command:
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
        if not NAME.fullmatch(str(name)):
            raise DehvfError(f"register_commands: '{name}' cannot name a command; wants lower-case words such as my-command")
        if not TARGET.fullmatch(str(target)):
            raise DehvfError(f"register_commands: {name}: given the target '{target}'; wants module:function")
        known = self.commands.get(name)
        if known is not None and known.target != target:
            raise DehvfError(f"two commands are named '{name}': {known.target} and {target}; rename one of them")
        self.commands[name] = Command(name, target, help)
