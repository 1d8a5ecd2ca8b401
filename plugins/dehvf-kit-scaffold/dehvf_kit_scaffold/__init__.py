"""Commands that write a starting point: `init` a recipe, `new-plugin` an installable plugin."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "init", "dehvf_kit_scaffold.init:init", "Ask three questions and write a recipe that passes `check`; never overwrites."
    )
    register(
        "new-plugin",
        "dehvf_kit_scaffold.new_plugin:new_plugin",
        "Write an installable plugin whose contract test passes; never overwrites.",
    )
