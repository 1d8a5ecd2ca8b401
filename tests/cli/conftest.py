"""Runs commands inside the test's process."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cli.commands import Command, Ended
from helpers import raw_recipe

from dehvf_kit.cli.main import app


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("check", path)`: run it; a traceback would be the test's own."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny recipe's file, alone in the current folder."""
    monkeypatch.chdir(tmp_path)
    file = Path("tiny.yaml")
    file.write_text(yaml.safe_dump(raw_recipe(), sort_keys=False))
    return file
