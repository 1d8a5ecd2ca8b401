"""A run killed at any moment, while it saves too, resumes and ends in the very weights of a run that nobody killed.

Five kills by default, 25 in `make nightly` (DEHVF_KIT_KILLS).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_runs.py")
KILLS = int(os.environ.get("DEHVF_KIT_KILLS", "5"))
# Three steps an epoch, of two batches each: every other checkpoint lies inside an epoch.
HARD = ["training.gradient_accumulation=2", "training.group_by_length=true", "training.save_steps=2", "graph.injector.dropout=0.1"]


@pytest.mark.scaled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
def test_kills_end_in_the_same_weights(world: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, world / "tiny.yaml", tmp_path, str(KILLS), *HARD], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])["runs"]
    assert len(runs) == KILLS
    for run in runs:
        assert run["unreadable"] == [] and run["status"] == 0 and run["same"] and run["left"] == [], (run, done.stderr)
    # Otherwise nothing was proven: some kills came inside a save, before a checkpoint, and after one.
    assert sum(run["inside_a_save"] for run in runs) >= KILLS // 5, runs
    assert {bool(run["checkpoints"]) for run in runs} == {True, False}
