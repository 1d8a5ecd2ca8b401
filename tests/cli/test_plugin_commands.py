"""Commands of plugins: found without importing other plugins, refused where a name is taken, named where one is missing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from cli.commands import Command

from dehvf_kit.cli import main as commands

HOOK = """
from dehvf_kit.api import hookimpl

@hookimpl
def register_commands(register):
    register("{name}", "{module}_work:work", "Do the work of {module}.")
"""
WORK = """
from dehvf_kit.errors import DataError

def work(word: str) -> None:
    if word == "bad":
        raise DataError("bad is no word")
    print("worked on", word)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`install(module, text)`: an installed plugin whose entry module has this text; others are not installed any more."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    entries: list[EntryPoint] = []
    monkeypatch.setattr(commands, "entry_points", lambda group: entries)

    def run(module: str, text: str, work: str = WORK) -> None:
        (tmp_path / f"{module}.py").write_text(text)
        (tmp_path / f"{module}_work.py").write_text(work)
        for name in (module, f"{module}_work"):
            sys.modules.pop(name, None)
        entries.append(EntryPoint(module, module, "dehvf_kit"))

    return run


def test_it_stands_in_help_and_runs_with_the_kits_errors(command: Command, install) -> None:
    install("plug_works", HOOK.format(name="do-work", module="plug_works"))
    assert "Do the work of plug_works." in command("--help").out
    assert "word" in command("do-work", "--help").out.lower()
    assert command("do-work", "well") == (0, "worked on well\n", "")
    assert command("do-work", "bad") == (1, "", "bad is no word\n")
    assert "'do-work'" in command("do-wrk").err, "suggested"


def test_a_plugin_without_commands_is_not_imported(command: Command, install) -> None:
    install("plug_without", "raise RuntimeError('imported')\n")
    ended = command("--help")
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("check", "two commands are named 'check': dehvf_kit.cli.check:check and plug_taken_work:work"),
        ("Check!", "'Check!' cannot name a command"),
    ],
)
def test_what_cannot_be_registered_is_reported_and_the_rest_works(command: Command, install, name: str, says: str) -> None:
    install("plug_taken", HOOK.format(name=name, module="plug_taken"))
    install("plug_whole", HOOK.format(name="whole", module="plug_whole"))
    ended = command("--help")
    assert ended.code == 0 and says in ended.err
    assert "plug_whole" in ended.out and "plug_taken" not in ended.out


def test_a_plugin_that_fails_is_reported(command: Command, install) -> None:
    install("plug_fails", "1 / 0  # register_commands\n")
    ended = command("--help")
    assert ended.code == 0 and "plug_fails" in ended.err and "division by zero" in ended.err


def test_a_target_that_is_not_there_is_a_message(command: Command, install) -> None:
    install("plug_empty", HOOK.format(name="empty", module="plug_empty"), work="")
    ended = command("empty", "x")
    assert ended.code == 1 and "plug_empty_work:work" in ended.err and "Traceback" not in ended.err


@pytest.mark.usefixtures("own_plugins")
def test_a_one_file_plugin_adds_one(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = HOOK.replace('"{module}_work:work"', 'f"{{__name__}}:work"').format(name="mine", module="mine")
    file.write_text(text + WORK)
    assert command("--plugin", file, "mine", "well") == (0, "worked on well\n", "")


@pytest.mark.usefixtures("own_plugins")
def test_a_one_file_plugin_may_not_take_a_name(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HOOK.format(name="check", module="mine"))
    ended = command("--plugin", file, "list")
    assert ended.code == 1 and "two commands are named 'check'" in ended.err and "mine_work:work" in ended.err


@pytest.mark.parametrize("words", [["r.yaml"], ["--help"]], ids=" ".join)
@pytest.mark.parametrize(("name", "plugin"), commands.IN_PLUGINS.items())
def test_a_command_whose_plugin_is_missing_says_which(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str, plugin: str, words: list[str]
) -> None:
    monkeypatch.setattr(commands, "entry_points", lambda group: [])
    ended = command(name, *words)
    assert (ended.code, ended.out) == (1, "")
    assert plugin in ended.err and "pip install" in ended.err and len(ended.err.splitlines()) == 1


def test_the_commands_of_this_repositorys_plugins_are_there() -> None:
    """In a process of its own: their entry modules bring neither torch nor transformers."""
    code = (
        "import sys; from dehvf_kit.cli.main import app; from typer.main import get_command\n"
        "names = get_command(app).list_commands(None)\n"
        "print(*names); print([name for name in ('torch', 'transformers', 'gradio') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, heavy = ended.stdout.splitlines()
    assert set(commands.IN_PLUGINS) <= set(names.split()) and heavy == "[]"
