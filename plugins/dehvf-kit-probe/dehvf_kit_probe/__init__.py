"""`dehvf-kit probe`: what each layer of a vision encoder tells about the questions of a data set, before anything is trained."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "probe",
        "dehvf_kit_probe.command:probe",
        "Fit a linear probe to every layer of the vision encoder, for each kind of question of the recipe's data.",
    )
