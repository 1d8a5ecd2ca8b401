"""What a shell completes after Tab, at once and without torch. Files and folders complete by the shell's own means."""

from __future__ import annotations

from pathlib import Path

COMPONENTS = Path(__file__).parents[1] / "components"


def roles() -> list[str]:
    """The roles that the kit itself has."""
    return sorted(["vision", "decoder", "data", *(file.parent.name for file in COMPONENTS.glob("*/__init__.py"))])


def figures() -> list[str]:
    """What `reproduce` prints."""
    from dehvf_kit.cli.reproduce import FIGURES, TABLES

    return [*TABLES, *FIGURES]


def gpus() -> list[str]:
    """The GPUs that `plan` knows."""
    from dehvf_kit.costs.gpus import GPUS

    return list(GPUS)
