"""Start-up, exit statuses and messages, whatever the command."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from cli.commands import Command

import dehvf_kit
from dehvf_kit.cli import main as main_module
from dehvf_kit.cli.arguments import split_words
from dehvf_kit.cli.console import quiet_transformers, stdout
from dehvf_kit.cli.main import app
from dehvf_kit.errors import DehvfError

VERBS = [
    *("check", "show", "list", "doctor", "build", "prepare", "data", "cache", "train", "eval", "verify", "score"),
    *("compare", "plan", "reproduce", "generate", "import-memvp", "demo", "graph", "report", "chat", "init", "new-plugin"),
]
HEAVY = ["torch", "transformers", "numpy", "yaml"]
HELP = """
import json, sys
from dehvf_kit.cli.main import app
ended = []
for words in json.loads(sys.argv[1]):
    try:
        app(words)
    except SystemExit as error:
        ended.append(error.code)
print(json.dumps({"ended": ended, "loaded": [name for name in json.loads(sys.argv[2]) if name in sys.modules]}))
"""


def test_help_of_every_command_loads_nothing_heavy() -> None:
    words = json.dumps([["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)])
    ended = subprocess.run([sys.executable, "-c", HELP, words, json.dumps(HEAVY)], capture_output=True, text=True, check=True)
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report == {"ended": [0] * (len(VERBS) + 2), "loaded": []}
    assert f"dehvf-kit {dehvf_kit.__version__}" in ended.stdout
    assert all(f" {verb} " in ended.stdout for verb in VERBS)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, dehvf_kit; print([name for name in sys.argv[1:] if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code, *HEAVY, "pydantic", "pluggy"], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_the_package_runs_as_a_module() -> None:
    ended = subprocess.run([sys.executable, "-m", "dehvf_kit", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("dehvf-kit ")


@pytest.mark.parametrize(
    "words",
    [["chekc"], ["check"], ["build", "r.yaml", "--nonsense"], ["generate", "a.png"], ["eval", "a", "--limit", "0"]],
    ids=" ".join,
)
def test_a_wrong_command_line_gives_two(command: Command, words: list[str]) -> None:
    ended = command(*words)
    assert (ended.code, ended.out) == (2, "")
    assert "Usage" in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize(
    "words",
    [["eval", ""], ["check", ""], ["generate", "a.png", "what ?", "--adapter", ""], ["generate", "a.png", "what ?", "--adapter="]],
    ids=" ".join,
)
def test_an_empty_place_is_not_the_current_folder(command: Command, words: list[str]) -> None:
    ended = command(*words)
    name = {"eval": "ADAPTER", "check": "RECIPE", "generate": "--adapter"}[words[0]]
    assert ended.code == 1 and ended.err == f"{name}: is empty; name a file or folder\n"


def test_tables_are_printed_nowhere_where_standard_output_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # what Python makes of `>&-`
    stdout().print("[bold]a[/]   \n")


def test_words_with_an_equals_sign_that_are_there_are_places(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    assert split_words([str(folder), "a=1", "b.yaml", "c=" + "x" * 9999]) == ([str(folder), "b.yaml"], ["a=1", "c=" + "x" * 9999])


def test_a_fault_is_its_message_alone(command: Command, tmp_path: Path) -> None:
    ended = command("check", tmp_path / "none.yaml")
    file = tmp_path / "none.yaml"
    assert ended == (1, "", f"Checking {file} ...\n{file}: there is no such file.\n")


def test_an_interrupt_is_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(recipe: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dehvf_kit.cli.check.check", interrupted)
    assert command("check", "r.yaml") == (130, "", "interrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(recipe: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dehvf_kit.cli.check.check", broken)
    with pytest.raises(ZeroDivisionError):
        app(["check", "r.yaml"])


@pytest.mark.usefixtures("own_plugins")
def test_a_one_file_plugin_is_loaded_before_the_command(command: Command, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from typing import Literal\n"
        "from dehvf_kit.components.fuser.mean import MeanFuserConfig\n"
        "from dehvf_kit.api.hookspecs import hookimpl\n"
        "class MyFuserConfig(MeanFuserConfig):\n"
        "    'A fuser of my own.'\n"
        "    type: Literal['mine'] = 'mine'\n"
        "@hookimpl\n"
        "def register_components(register):\n"
        "    register(MyFuserConfig)\n"
    )
    ended = command("--plugin", plugin, "list", "fuser", "--json")
    entries = {entry["type"]: entry for entry in json.loads(ended.out)["components"]}
    assert entries["mine"]["origin"] == "mine"
    assert entries["mine"]["summary"] == "A fuser of my own."
    assert entries["mean"]["origin"] == "built-in"


@pytest.mark.usefixtures("own_plugins")
@pytest.mark.parametrize(("text", "says"), [(None, "there is no such file"), ("1/0", "ZeroDivisionError")])
def test_a_faulty_plugin_file_is_a_message(command: Command, tmp_path: Path, text: str | None, says: str) -> None:
    plugin = tmp_path / "mine.py"
    if text is not None:
        plugin.write_text(text)
    ended = command("--plugin", plugin, "list")
    assert ended.code == 1 and ended.out == ""
    assert says in ended.err and len(ended.err.splitlines()) == 1


def test_main_ends_with_the_commands_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(recipe: str) -> None:
        raise DehvfError("mend this")

    monkeypatch.setattr(sys, "argv", ["dehvf-kit", "check", "r.yaml"])
    monkeypatch.setattr("dehvf_kit.cli.check.check", faulty)
    with pytest.raises(SystemExit) as ended:
        main_module.main()
    assert ended.value.code == 1


def test_torchs_advice_to_authors_of_packages_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.14 warns of torchao's enums whenever transformers imports it."""
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    quiet_transformers()
    assert not logging.getLogger("torch.utils._pytree").isEnabledFor(logging.WARNING)
