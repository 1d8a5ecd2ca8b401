"""A chat page for dehvf-kit: ask one adapter, or two side by side, about an image."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "chat",
        "dehvf_kit_chat.command:chat",
        "Serve a chat page on this machine: answers as they grow, and the vision layers read for each.",
    )
