"""The command line: the table of the kit's own commands. Plugins add theirs by the hook `register_commands`.

A fault the user can correct is printed alone, without a traceback, and the exit status is 1; a wrong command line gives 2,
an interrupt 130, SIGTERM 143, SIGHUP 129.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dehvf_kit._version import __version__
from dehvf_kit.api.registry import DEBUG, Command, CommandTable, raised
from dehvf_kit.errors import DehvfError, PluginError, RemoteCodeWarning

PLACES = re.compile("DIR|FILE|FOLDER|ADAPTER|RECIPE|RUN")  # in the metavar of what names a folder or file
HOOK = b"register_commands"
# Commands of plugins that live in the kit's repository.
_PLUGINS = {
    **{name: name for name in ("chat", "compare", "demo", "export", "plan", "probe", "serve", "tune")},
    "baselines": "import-memvp reproduce",
    "benchmarks": "score",
    "doctor": "cache data doctor list prepare support verify",
    "report": "graph report",
    "scaffold": "init new-plugin",
}
IN_PLUGINS = {command: f"dehvf-kit-{plugin}" for plugin, commands in _PLUGINS.items() for command in commands.split()}
# The command, its function in this folder (`module:function`), and its line in `--help`.
COMMANDS = (
    ("check", "check:check", "Find every fault of a recipe at once; needs both base models' configs, no weights."),
    ("show", "show:show", "Print a recipe with its parents merged and every default filled in."),
    ("build", "build:build", "Save a recipe's adapter without base weights; print graph, parameters, FLOPs and memory."),
    ("train", "train:train", "Train a recipe's adapter on its data set."),
    ("eval", "evaluate:evaluate", "Score a trained adapter on the test split of its data set."),
    ("generate", "generate:generate", "Answer a question about an image."),
)


class PluginCommands(TyperGroup):
    """All commands by name. Errors that the user can correct become messages, and plugins are looked up only where needed."""

    builtin: Sequence[tuple[str, str, str]] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.table = CommandTable()
        self.plugins_added = False
        for row in self.builtin:
            self.table.register(*row)
        self._add(self.table)

    def list_commands(self, ctx: Any) -> list[str]:
        self._add_installed()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            self._add_installed()
        if cmd_name not in self.commands and cmd_name in IN_PLUGINS and not ctx.resilient_parsing:
            plugin = IN_PLUGINS[cmd_name]
            raise DehvfError(
                f"the command `{cmd_name}` comes with the plugin {plugin}; pip install {plugin}, or in a clone of the "
                f"repository: pip install --editable plugins/{plugin}"
            )
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if ctx.params.get("plugin") and not ctx.resilient_parsing:
            from dehvf_kit.recipe.plugin_manager import load_plugin_file, plugins

            for file in ctx.params["plugin"]:
                load_plugin_file(file)
            self._add(plugins().commands)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            try:
                super().invoke(ctx)
                print(end="", flush=True)
            except DehvfError as error:
                print(error, file=sys.stderr)
                raise typer.Exit(error.exit_status) from error
            except Exception as error:
                from dehvf_kit.utils.atomic import FULL, refused, unwritable

                found = refused(error)
                if found is None or found.errno == errno.EPIPE or os.environ.get(DEBUG):
                    raise
                full = found.errno in FULL
                place = found.filename or "the disk"
                print(unwritable(place, found) if full else f"{place}: {found.strerror or found}", file=sys.stderr)
                raise typer.Exit(1) from error
            except KeyboardInterrupt as error:
                print("interrupted", file=sys.stderr)
                raise typer.Exit(128 + (error.args[0] if error.args else signal.SIGINT)) from error

    def _add(self, table: CommandTable) -> None:
        """Add commands, all or none. Raises: DehvfError for a name that is taken."""
        merged = CommandTable(dict(self.table.commands))
        for command in table.commands.values():
            merged.register(command.name, command.target, command.help)
        self.table = merged
        self.commands = {name: LazyCommand(command) for name, command in merged.commands.items()}

    def _add_installed(self) -> None:
        """Add the commands of installed plugins; one that fails is reported on standard error and passed over."""
        if self.plugins_added:
            return
        self.plugins_added = True
        for entry in sorted(entry_points(group="dehvf_kit"), key=lambda entry: entry.name):
            try:
                with redirect_stdout(sys.stderr):
                    if _has_commands(entry.module):
                        table = CommandTable()
                        entry.load().register_commands(register=table.register)
                        self._add(table)
            except (Exception, SystemExit) as error:  # a plugin's own code: `dehvf-kit list` says more
                reason = raised(error) if isinstance(error, SystemExit) else error
                print(f"warning: the commands of plugin '{entry.name}' are excluded: {reason}", file=sys.stderr)


class LazyCommand(TyperCommand):
    """A command that is known by name and help line; its module is imported when it runs or when its own help is asked for."""

    def __init__(self, command: Command) -> None:
        super().__init__(command.name, help=command.help)
        self.command = command

    def load(self) -> Any:
        """The command itself. Raises: PluginError where its module or function cannot be found."""
        module, _, name = self.command.target.partition(":")
        try:
            with redirect_stdout(sys.stderr):
                found = getattr(import_module(module), name)
        except (ImportError, AttributeError, SystemExit) as error:
            reason = raised(error) if isinstance(error, SystemExit) else error
            raise PluginError(f"{self.name}: its function {self.command.target} cannot be loaded: {reason}") from error
        if isinstance(found, typer.Typer):
            group = typer.main.get_group(found)
            group.name, group.help = self.name, self.command.help
            return group
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(self.name, help=self.command.help)(found)
        return typer.main.get_command(app)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        from dehvf_kit.cli.console import quiet_transformers

        quiet_transformers()
        command = self.load()
        _refuse_empty(command, args)
        context = command.make_context(info_name, args, parent, **extra)
        for parameter in command.params:
            _refuse_endless(parameter.opts[0], context.params.get(parameter.name))
        return context


def _refuse_endless(option: str, value: Any) -> None:
    """Raises: DehvfError for a count that no run reaches, and for a number that is none."""
    from dehvf_kit.api.config import MAX_COUNT, REASONS

    if isinstance(value, int | float) and not abs(value) <= MAX_COUNT:
        raise DehvfError(f"{option}: given {value}; wants {MAX_COUNT:,} or less: {REASONS[MAX_COUNT]}")


def _refuse_empty(command: Any, args: Sequence[str]) -> None:
    """Raises: DehvfError for a file or folder that is an empty text, which Python takes for the current folder."""
    given, rest, _ = command.make_parser(command.context_class(command, resilient_parsing=True)).parse_args(list(args))
    for one in command.params:
        value = given.get(one.name)
        if PLACES.search(one.metavar or "") and "" in (value if isinstance(value, (list, tuple)) else [value]):
            name = one.opts[0] if one.opts[0].startswith("-") else one.metavar
            raise DehvfError(f"{name}: is empty; name a file or folder")
    inner = getattr(command, "commands", {}).get(rest[0]) if rest else None
    if inner is not None:
        _refuse_empty(inner, rest[1:])


def _has_commands(module: str) -> bool:
    """Whether a plugin's entry module names the hook, read from its source so that other plugins are not imported."""
    spec = find_spec(module)
    if spec is None or not spec.has_location or not str(spec.origin).endswith(".py"):
        return spec is not None
    return HOOK in Path(str(spec.origin)).read_bytes()


def _print_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """The kit's warnings on a line of their own; others as Python prints them."""
    ours = category is RemoteCodeWarning
    print(f"warning: {message}\n" if ours else warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)


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
        list[Path] | None, typer.Option("--plugin", metavar="FILE", help="Load a one-file plugin first; may be repeated.")
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the command; `Commands` loads the plugin files."""


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


class _Stream(io.FileIO):
    """Standard output or error. Where nobody reads it any more, what is written is dropped; a full disk is told once."""

    failed = False

    def write(self, data: Any) -> int:
        try:
            return len(data) if self.failed else super().write(data)
        except OSError as error:
            self.failed = True
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return len(data)


def main() -> None:
    """The entry point of `dehvf-kit`. SIGTERM and SIGHUP end a command as Ctrl-C does, so that it takes away what is unfinished."""
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` has SIGHUP ignored, and so it stays
            signal.signal(number, _interrupt)
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        if stream is not None:
            raw = io.BufferedWriter(_Stream(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=bool(stream.line_buffering)))
    gc.freeze()  # what is imported by now stays, so that no collection looks at it again
    app()
