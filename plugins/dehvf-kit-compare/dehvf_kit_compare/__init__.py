"""`dehvf-kit compare`: recipes trained and scored with identical data and budget, over several seeds."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "compare",
        "dehvf_kit_compare.command:compare",
        "Train and score recipes with identical data and budget, over several seeds.",
    )
