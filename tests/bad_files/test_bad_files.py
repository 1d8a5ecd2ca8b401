"""Every bad file is made, given to a command, and ends as docs/bad_files.md says."""

from __future__ import annotations

import ast
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from bad_files.ground import REFUSED, Case, Ground
from bad_files.page import CASES, PAGE, page
from cli.commands import Command

ROOT = Path(__file__).parents[2]


def skip_where_it_cannot_be_made(case: Case) -> None:
    if case.needs == "user" and (not hasattr(os, "geteuid") or os.geteuid() == 0):
        pytest.skip("root reads every file")
    if case.needs == "mkfifo" and not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    if case.needs == "datasets" and find_spec("datasets") is None:
        pytest.skip("needs the extra data")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind.split()[0].lower()}-{case.name}")
def test_a_bad_file_ends_as_documented(case: Case, ground: Ground, command: Command) -> None:
    skip_where_it_cannot_be_made(case)
    ended = command(*case.make(ground))
    printed = ended.out + ended.err
    assert ended.code == (1 if case.outcome == REFUSED else 0), printed
    assert case.said in printed.replace("\n", " ") or case.said in printed, printed
    assert "Traceback" not in printed and len(printed) < 5000
    assert not list(ground.folder.rglob("payload-ran")) and not (ground.folder.parent / "payload-ran").exists()
    assert not (ground.folder / "run" / "adapter").exists(), "nothing half-written"
    if case.look is not None:
        case.look(ground)


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/bad_files/page.py"


def test_the_table_is_long_enough_and_says_nothing_twice() -> None:
    assert len(CASES) >= 30
    assert len({(case.kind, case.what) for case in CASES}) == len(CASES)


def test_nothing_unpacks_an_archive() -> None:
    """An entry named `../x` can only do harm where entries become files."""
    unpacking = {"extract", "extractall", "unpack_archive"}
    for file in [*(ROOT / "dehvf_kit").rglob("*.py"), *(ROOT / "plugins").glob("*/dehvf_kit_*/*.py")]:
        names = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & unpacking, f"{file}: {names & unpacking}"


def test_no_file_of_others_is_unpickled() -> None:
    """`torch.load` reads tensors alone, and pickle loads nothing."""
    for file in [*(ROOT / "dehvf_kit").rglob("*.py"), *(ROOT / "plugins").glob("*/dehvf_kit_*/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            assert (owner, node.func.attr) not in {("pickle", "load"), ("pickle", "loads")}, file
            if (owner, node.func.attr) == ("torch", "load"):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                assert isinstance(given.get("weights_only"), ast.Constant) and given["weights_only"].value is True, file
