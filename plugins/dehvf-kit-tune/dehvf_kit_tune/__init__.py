"""`dehvf-kit tune`: the settings of a recipe that score best on its validation split."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register("tune", "dehvf_kit_tune.command:tune", "Search the settings of a recipe that score best on its validation split.")
