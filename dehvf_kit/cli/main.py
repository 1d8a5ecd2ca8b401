"""The command line: the table of the kit's own commands. Plugins add theirs by the hook `register_commands`.

A fault the user can correct is printed alone, without a traceback, and the exit status is 1; a wrong command line gives 2,
an interrupt 130, a run stopped by SIGTERM 143, by SIGHUP 129.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from dehvf_kit._version import __version__
from dehvf_kit.cli.commands import PluginCommands

# The command, its function in this folder (`module:function`), and its line in `--help`.
COMMANDS = (
    ("check", "check:check", "Find every fault of a recipe at once; needs both base models' configs, no weights."),
    ("show", "show:show", "Print a recipe with its parents merged and every default filled in."),
    ("list", "listing:list_installed", "List components, base models, data sets and plugins, each with its origin."),
    (
        "doctor",
        "doctor:doctor",
        "Show where memory goes in a decoder and what a vision encoder yields; test both contracts.",
    ),
    (
        "support",
        "support:support",
        "Print which decoder and vision families pass the kit's contract, or test some now.",
    ),
    (
        "build",
        "build:build",
        "Save a recipe's adapter without base weights; print graph, parameters, FLOPs and memory.",
    ),
    ("prepare", "prepare:prepare", "Check data sets: published sizes, and everything missing, broken or repeated."),
    ("data", "data:data", "Show training samples as the model will see them: tokens, loss and image."),
    ("score", "score:app", "Score predictions of any model on a benchmark."),
    ("cache", "cache:cache", "Compute the frozen encoders' features once per image, for `train` and `eval`."),
    ("train", "train:train", "Train a recipe's adapter on its data set."),
    ("eval", "evaluate:evaluate", "Score a trained adapter on the test split of its data set."),
    ("verify", "verify:verify", "Compare answers to questions alone and in padded batches, with and without a cache."),
    ("generate", "generate:generate", "Answer a question about an image."),
    ("init", "init:init", "Ask three questions and write a recipe that passes `check`; never overwrites."),
    (
        "new-plugin",
        "new_plugin:new_plugin",
        "Write an installable plugin whose contract test passes; never overwrites.",
    ),
)


class Commands(PluginCommands):
    """The kit's own commands and those of plugins."""

    builtin = tuple((name, f"dehvf_kit.cli.{target}", line) for name, target, line in COMMANDS)


app = typer.Typer(
    name="dehvf-kit",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Adds vision to a frozen LLM: hierarchical visual features written into its feed-forward memory.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dehvf-kit {__version__} ({', '.join(_installed(name) for name in ('torch', 'transformers'))})")
        raise typer.Exit


def _installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} missing"


@app.callback()
def options(
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="Load a one-file plugin first; may be repeated."),
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the command; `Commands` loads the plugin files."""


def main() -> None:
    """The entry point of `dehvf-kit`."""
    app()
