"""`dehvf-kit export`: an adapter with its base models as ONNX or torch.export files."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "export", "dehvf_kit_export.command:export", "Write an adapter with its base models as ONNX or torch.export files, checked."
    )
