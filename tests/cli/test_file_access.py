"""Every writer of the kit and its plugins replaces a file whole, and nobody looks at a user's path in a way that raises."""

from __future__ import annotations

import ast
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cli.commands import Command

ROOT = Path(__file__).parents[2]
LOOKS = {"exists", "is_file", "is_dir"}
"""Methods of Path that raise where nobody can look; `utils.atomic` has functions of these names that say so."""
# File -> why it may write without `utils.atomic`, or ask a path: its places are the kit's own, not the user's.
WRITERS = {
    "dehvf_kit/utils/atomic.py": "it is the writer",
    "plugins/dehvf-kit-scaffold/dehvf_kit_scaffold/new_plugin.py": "into a folder that is then moved to its place",
    "plugins/dehvf-kit-scaffold/dehvf_kit_scaffold/starter.py": "under another name, which is then linked",
    "dehvf_kit/training/checkpoints.py": "into a folder that is then renamed",
    "dehvf_kit/training/run_folder.py": "a lock",
    "dehvf_kit/model/features_in_use.py": "locks",
    "dehvf_kit/evaluation/kept_answers.py": "appends whole lines, and reads those that are whole",
    "dehvf_kit/evaluation/evaluate.py": "tries the file of kept answers, and appends to the list of a run's evaluations",
    "plugins/dehvf-kit-demo/dehvf_kit_demo/dinov2.py": "into a folder that is then renamed",
    "plugins/dehvf-kit-demo/dehvf_kit_demo/smollm2.py": "into a folder that is then renamed",
    "plugins/dehvf-kit-compare/dehvf_kit_compare/processes.py": "a log and a lock",
}
LOOKERS = {
    "dehvf_kit/utils/atomic.py",
    "dehvf_kit/utils/shipped.py",
    "plugins/dehvf-kit-doctor/dehvf_kit_doctor/support.py",
    "plugins/dehvf-kit-scaffold/dehvf_kit_scaffold/schema.py",
    "dehvf_kit/training/checkpoints.py",
    "dehvf_kit/adapter/base_weights.py",
    "plugins/dehvf-kit-baselines/dehvf_kit_baselines/method_table.py",
    "plugins/dehvf-kit-baselines/dehvf_kit_baselines/reproduction/figures.py",
    "plugins/dehvf-kit-baselines/dehvf_kit_baselines/reproduction/tables.py",
    "plugins/dehvf-kit-compare/dehvf_kit_compare/measure.py",
    "plugins/dehvf-kit-compare/dehvf_kit_compare/processes.py",
    "plugins/dehvf-kit-demo/dehvf_kit_demo/cache.py",
    "plugins/dehvf-kit-demo/dehvf_kit_demo/demo.py",
    "plugins/dehvf-kit-demo/dehvf_kit_demo/wheels.py",
}


def sources() -> dict[str, ast.AST]:
    files = [*(ROOT / "dehvf_kit").rglob("*.py"), *(ROOT / "plugins").glob("*/dehvf_kit_*/**/*.py")]
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def calls(tree: ast.AST) -> list[tuple[str, str, list[str]]]:
    """(owner, name, texts among the arguments) of each call of a method or function."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            own = isinstance(node.func, ast.Attribute)
            owner, name = (ast.unparse(node.func.value), node.func.attr) if own else ("", node.func.id)
            given = [*node.args, *(word.value for word in node.keywords)]
            found.append(
                (owner, name, [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)])
            )
    return found


def writes(owner: str, name: str, texts: list[str]) -> bool:
    opened = name == "open" and any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts)
    return opened or (name in ("write_text", "write_bytes") and owner not in ("", "atomic"))


def test_files_are_written_whole() -> None:
    found = {file for file, tree in sources().items() if any(writes(*call) for call in calls(tree))}
    in_lambda = {"plugins/dehvf-kit-report/dehvf_kit_report/page.py"} & found
    assert found - in_lambda == set(WRITERS), "write by dehvf_kit.utils.atomic, or say here why not"


def test_users_paths_are_looked_at_by_one_helper() -> None:
    found = {
        file
        for file, tree in sources().items()
        if any(name in LOOKS and owner not in ("", "atomic", "os.path") for owner, name, _ in calls(tree))
    }
    assert found == LOOKERS, "ask dehvf_kit.utils.atomic, or os.path where an answer `no` will do"


CLOSED = {
    "train --output": ["train", "RECIPE", "--output", "CLOSED/run"],
    "eval": ["eval", "CLOSED/adapter"],
    "eval --output": ["eval", "ADAPTER", "--output", "CLOSED/a.jsonl"],
    "report": ["report", "CLOSED/adapter"],
    "report --output": ["report", "ADAPTER", "--output", "CLOSED/a.html"],
    "graph --output": ["graph", "RECIPE", "--output", "CLOSED/a.svg"],
    "compare --output": ["compare", "RECIPE", "--output", "CLOSED/compare"],
    "import-memvp --output": ["import-memvp", "RECIPE", "--recipe", "RECIPE", "--output", "CLOSED/a"],
    "generate --adapter": ["generate", "IMAGE", "what ?", "--adapter", "CLOSED/adapter"],
    "init --output": ["init", "--decoder", "a", "--vision", "b", "--data", "none", "--output", "CLOSED/a.yaml"],
    "demo --output": ["demo", "--output", "CLOSED/demo"],
}


@pytest.fixture(scope="module")
def adapter(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import dehvf_kit

    folder = tmp_path_factory.mktemp("closed") / "adapter"
    dehvf_kit.build(dehvf_kit.load_recipe(world / "tiny.yaml")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", CLOSED)
def test_a_closed_folder_is_named(
    case: str, world: Path, adapter: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user without permission; root has them all, so the refusal is put before the system's calls."""
    closed = tmp_path / "closed"
    refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def guarded(function):
        def call(path, *arguments, **options):
            if isinstance(path, str | Path) and Path(path).is_relative_to(closed) and Path(path) != closed:
                raise refused
            return function(path, *arguments, **options)

        return call

    closed.mkdir()
    words = {"RECIPE": world / "tiny.yaml", "ADAPTER": adapter, "IMAGE": world / "test0.png", "NEW": tmp_path / "new"}
    given = [str(words.get(word, word)).replace("CLOSED", str(closed)) for word in CLOSED[case]]
    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "open", "mkdir", "scandir", "listdir"):
            patch.setattr(os, name, guarded(getattr(os, name)))
        patch.setattr("io.open", guarded(open))
        ended = command(*given)
    assert ended.code in (1, 2) and "Permission denied" in ended.err, ended.err
    assert "Traceback" not in ended.err and str(closed) in ended.err.replace("\n", "")


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a function fail during the test; modules first imported meanwhile, which keep it, find it whole afterwards."""
    running = [True]

    def forbid(place: str) -> None:
        module, _, name = place.rpartition(".")
        work = getattr(import_module(module), name)

        def call(*given: Any, **settings: Any) -> Any:
            assert not running, f"{place} was called"
            return work(*given, **settings)

        monkeypatch.setattr(place, call)

    yield forbid
    running.clear()


@pytest.mark.parametrize(
    ("words", "inside"),
    [
        (["train", "RECIPE", "--output", "new"], "new/log.jsonl"),
        (["train", "RECIPE", "--output", "new"], "new/run.json"),
        (["train", "RECIPE", "--output", "new"], "new/checkpoints"),
        (["eval", "ADAPTER", "--output", "new.jsonl"], "new.skipped.jsonl"),
        (["eval", "ADAPTER", "--store"], "adapter/measured.json"),
        (["verify", "ADAPTER"], "adapter/README.md"),
        (["graph", "RECIPE", "--output", "new.svg"], "new.svg"),
        (["compare", "RECIPE", "--output", "new"], "new/runs"),
        (["build", "RECIPE", "--output", "new/adapter"], "new"),
    ],
)
def test_a_file_that_is_a_folder_is_named_before_the_work(
    words, inside, world, adapter, tmp_path, command, monkeypatch, forbid
) -> None:
    """Or a folder that is a file; the work itself would be an error here."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapter, tmp_path / "adapter")
    place = tmp_path / inside
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    place.write_text("") if place.name in ("checkpoints", "runs", "new") else place.mkdir()
    forbid("dehvf_kit.model.builder.build")
    forbid("dehvf_kit.adapter.checkpoint.load")
    ended = command(*[{"RECIPE": world / "tiny.yaml", "ADAPTER": "adapter"}.get(word, word) for word in words])
    assert ended.code == 1 and inside in ended.err and ("Is a directory" in ended.err or "Not a directory" in ended.err)


@pytest.mark.parametrize(
    ("words", "work"),
    [
        (["report", "ADAPTER"], "dehvf_kit_report.write._samples"),
        (["graph", "RECIPE"], "dehvf_kit_report.drawing.wiring.draw_recipe"),
        (["init", "--decoder", "a", "--vision", "b", "--data", "none"], "dehvf_kit_scaffold.starter.starter_recipe"),
        (["import-memvp", "RECIPE", "--recipe", "RECIPE"], "dehvf_kit.recipe.recipe.load_recipe"),
        (["demo"], "dehvf_kit_demo.demo.demo_recipe"),
    ],
)
def test_a_place_is_tried_before_the_work(words, work, world, adapter, tmp_path, command, forbid) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    forbid(work)
    given = [{"RECIPE": world / "tiny.yaml", "ADAPTER": adapter}.get(word, word) for word in words]
    ended = command(*given, "--output", tmp_path / "file" / "out")
    assert ended.code == 1 and "cannot be written: Not a directory; a file is where a folder should be; name another" in ended.err
