"""`dehvf-kit report` and `dehvf-kit graph`: a self-contained page about a run, and a recipe's wiring as a drawing."""

from __future__ import annotations

from dehvf_kit.api import RegisterCommand, hookimpl

__version__ = "0.1.0"


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    register(
        "graph",
        "dehvf_kit_report.graph_command:graph",
        "Draw a recipe's graph: nodes, ports, named axes with their sizes; needs no weights.",
    )
    register(
        "report",
        "dehvf_kit_report.report_command:report",
        "Write a page about a run: scores, answers, per-layer vision weights, memory contributions.",
    )
