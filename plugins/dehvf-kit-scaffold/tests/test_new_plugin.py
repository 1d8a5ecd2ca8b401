"""A package of each kind: written whole, its own tests pass at once, nothing of yours is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.commands import Command
from dehvf_kit_scaffold.new_plugin import KINDS


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_its_tests_pass_at_once(command: Command, tmp_path: Path, kind: str) -> None:
    ended = command("new-plugin", "my-own", "--kind", kind, "-o", tmp_path, "--json")
    assert ended.code == 0, ended.err
    facts = json.loads(ended.out)
    folder = Path(facts["folder"])
    assert folder == tmp_path / "dehvf-kit-my-own"
    assert {str(Path(file).relative_to(folder)) for file in facts["files"]} == {
        "pyproject.toml", "README.md", ".gitignore", "dehvf_kit_my_own.py", "tests/test_my_own.py"
    }  # fmt: skip
    assert {"build/", "*.egg-info/", "__pycache__/"} <= set((folder / ".gitignore").read_text().split())
    assert not any("{{" in Path(file).read_text() for file in facts["files"])
    readme = (folder / "README.md").read_text()
    tests = "".join(file.read_text() for file in folder.glob("tests/*.py"))
    assert ("dehvf-kit-doctor, which the tests need too" in readme) == ("dehvf_kit_doctor" in tests)
    ways = os.pathsep.join([str(folder), *sys.path])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder, env={**os.environ, "PYTHONPATH": ways, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout


@pytest.mark.usefixtures("own_plugins")
def test_its_file_is_a_plugin(command: Command, tmp_path: Path) -> None:
    command("new-plugin", "mine", "--kind", "component", "-o", tmp_path)
    file = tmp_path / "dehvf-kit-mine" / "dehvf_kit_mine.py"
    entries = json.loads(command("--plugin", file, "list", "fuser", "--json").out)["components"]
    assert "mine" in {entry["type"] for entry in entries}


def test_pyproject_names_the_module(command: Command, tmp_path: Path) -> None:
    tomllib = pytest.importorskip("tomllib")
    command("new-plugin", "dehvf-kit-two-words", "--kind", "data", "-o", tmp_path)
    facts = tomllib.loads((tmp_path / "dehvf-kit-two-words" / "pyproject.toml").read_text())
    assert facts["project"]["entry-points"]["dehvf_kit"] == {"two_words": "dehvf_kit_two_words"}
    assert facts["tool"]["setuptools"]["py-modules"] == ["dehvf_kit_two_words"]


def test_it_never_overwrites(command: Command, tmp_path: Path) -> None:
    (tmp_path / "dehvf-kit-mine").mkdir()
    ended = command("new-plugin", "mine", "--kind", "data", "-o", tmp_path)
    assert ended.code == 1 and "is there already" in ended.err
    assert list((tmp_path / "dehvf-kit-mine").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["My Plugin", "--kind", "data"], "cannot name a plugin"),
        (["../up", "--kind", "data"], "cannot name a plugin"),
        (["class", "--kind", "data"], "cannot name a plugin"),
        (["mine", "--kind", "fuser"], "one of vision, decoder, component, injector, data"),
    ],
)
def test_mistakes_are_told(command: Command, tmp_path: Path, words: list[str], says: str) -> None:
    ended = command("new-plugin", *words, "-o", tmp_path)
    assert ended.code == 1 and says in ended.err and list(tmp_path.iterdir()) == []
