"""The command line: arguments only. Each command's work stands in its own file, imported when it runs.

A fault the user can mend is printed alone, without a traceback, and the exit status is 1; a wrong command line gives 2,
an interrupt 130, a run stopped by SIGTERM 143.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dehvf_kit._version import __version__
from dehvf_kit.cli.data_commands import add_data_commands
from dehvf_kit.cli.page_commands import add_page_commands
from dehvf_kit.cli.recipe_commands import add_recipe_commands
from dehvf_kit.cli.run_commands import add_run_commands
from dehvf_kit.cli.starting_commands import add_starting_commands
from dehvf_kit.errors import DehvfError, RemoteCodeWarning

INTERRUPTED = 130


class Commands(TyperGroup):
    """The group of all commands, which turns errors into messages."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            return self._invoke(ctx)

    def _invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DehvfError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(error.exit_status) from error
        except KeyboardInterrupt as error:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error


def _print_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """The kit's warnings as a line of their own; others as Python prints them."""
    if category is RemoteCodeWarning:
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)


app = typer.Typer(
    name="dehvf-kit",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Give eyes to a frozen language model: hierarchical visual features written into its feed-forward memory.",
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
def before(
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="Load a one-file plugin first; may be repeated."),
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What happens before every command."""
    if plugin:
        from dehvf_kit.recipe.plugin_manager import load_plugin_file

        for file in plugin:
            load_plugin_file(file)


for add in (add_recipe_commands, add_data_commands, add_run_commands, add_page_commands, add_starting_commands):
    add(app)


def main() -> None:
    """The entry point of `dehvf-kit`."""
    app()
