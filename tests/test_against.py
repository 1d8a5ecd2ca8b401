"""`benchmarks/against.py`: two commits side by side. Of the time that it tells nothing is asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
