"""`dehvf-kit serve`: adapters behind an API that OpenAI's clients speak."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register("serve", "dehvf_kit_serve.command:serve", "Serve adapters to OpenAI's clients (needs starlette, uvicorn, llguidance).")
