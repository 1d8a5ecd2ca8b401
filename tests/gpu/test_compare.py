"""`benchmarks/compare.py` at the size of LLaMA-7B on a CUDA device, and with tiny sizes on the CPU. No time is asserted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SUBJECTS = {"text only", "DEHVF", "MemVP", "ADEM-VL", "gated cross-attention", "LLaVA-style", "LoRA, no image", "LLaVA-LoRA"}
TINY = ["--quick", "--layers", "2", "--repetitions", "1", "--threads", "1"]
SMALL = ["training-2-8", "prefill-3-8", "decode-3-8"]
DEVICES = {
    "cuda": (["--device", "cuda"], ["training-4-128", "prefill-32-128", "decode-32-128"]),
    "cpu": ([*TINY, "--only", *SMALL], SMALL),
}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PLACES = [pytest.param("cuda", marks=[pytest.mark.gpu, CUDA]), pytest.param("cpu", marks=pytest.mark.nightly)]


@pytest.mark.parametrize("device", PLACES)
def test_every_method_trains_reads_and_writes_at_the_batches_of_table_2(device: str, tmp_path: Path) -> None:
    options, points = DEVICES[device]
    command = [sys.executable, ROOT / "benchmarks/compare.py", "--table2", *options, "--output", tmp_path]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=480)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (run,) = json.loads((tmp_path / "compare.json").read_text())["runs"]
    assert run["shapes"]["vocabulary"] == 32000 and run["shapes"]["dtype"] == "bfloat16"
    assert run["shapes"]["layers"] == (32 if device == "cuda" else 2)
    assert [f"{point['mode']}-{point['batch']}-{point['tokens']}" for point in run["points"]] == points
    for point in run["points"]:
        assert set(point["seconds"]) == set(point["flops"]) == SUBJECTS
        assert all(math.isfinite(second) for taken in point["seconds"].values() for second in taken)
        assert set(point["peak"]) == (SUBJECTS if device == "cuda" else set())
        assert point["flops"]["LLaVA-LoRA"] >= point["flops"]["LLaVA-style"] >= point["flops"]["text only"]
        assert f"{point['mode']}, batch {point['batch']}, text {point['tokens']}" in ended.stdout
    assert "extrapolated" not in ended.stdout or device == "cpu"
