"""`benchmarks/against.py`: two commits side by side. Of the time that it tells nothing is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.nightly
def test_this_commit_against_itself_gives_the_same_result(tmp_path: Path) -> None:
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("not a git checkout")
    command = [sys.executable, str(ROOT / "benchmarks/against.py"), "HEAD", "--quick", "--pairs", "1", "--jobs", "images"]
    found = subprocess.run([*command, "--work", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    row = next(line for line in found.stdout.splitlines() if line.startswith("| images:"))
    assert "| images/s |" in row and row.endswith("| yes | 1 |")


def test_variables_of_a_job_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import against

    seen = {}
    monkeypatch.setattr(
        against.subprocess, "run", lambda command, env, **_: seen.update(env) or SimpleNamespace(returncode=0, stdout="{}")
    )
    assert against.run(ROOT, "memory", tmp_path, SimpleNamespace(threads=1, quick=True)) == {}
    assert seen["MALLOC_TRIM_THRESHOLD_"] == "0" and seen["OMP_NUM_THREADS"] == "1"
