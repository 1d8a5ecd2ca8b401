"""`dehvf-kit plan`: what training and answering with a recipe takes on a GPU, counted from configs alone."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "plan",
        "dehvf_kit_plan.command:plan",
        "Estimate FLOPs, memory and time of training and answering on a GPU; needs no weights, no GPU.",
    )
