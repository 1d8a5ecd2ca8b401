"""No command asks the network unasked: `kernels`, which bitsandbytes fetches a kernel with, is a package that notes its use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = """
import socket, sys
def refused(*args, **kwargs):
    print("NETWORK", args, file=sys.stderr)
    raise OSError("no network in this test")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refused
"""
KERNELS = """
import sys
def get_kernel(*args, **kwargs):
    print("KERNEL", args, file=sys.stderr)
    raise OSError("no network in this test")
"""
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
VIT = {"model_type": "vit", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TUNED = {"vision": {"config": VIT}, "decoder": {"config": LLAMA}, "graph": {"decoder_adapter": {"type": "peft"}}}
TRAINER = "import dehvf_kit.training.run, sys; assert 'transformers.trainer' in sys.modules"
DIRECT = "from transformers import Trainer"


def run(code: list[str], folder: Path, with_kernels: bool) -> str:
    """What a fresh process writes to stderr, with a guard on its sockets."""
    (folder / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    if with_kernels:
        (folder / "kernels.py").write_text(KERNELS, encoding="utf-8")
    path = os.pathsep.join([str(folder), *(place for place in sys.path if place)])
    done = subprocess.run(
        [sys.executable, *code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("with_kernels", [False, True])
def test_no_command_looks_a_kernel_up(tmp_path: Path, with_kernels: bool) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    if not any(word in run(["-c", DIRECT], tmp_path, with_kernels) for word in ("KERNEL", "kernels-community")):
        pytest.skip("bitsandbytes looks no kernel up on this CPU")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(TUNED), encoding="utf-8")
    commands = ["doctor", str(config)], ["check", str(recipe)]
    for code in (["-c", TRAINER], *(["-m", "dehvf_kit", *command] for command in commands)):
        said = run(code, tmp_path, with_kernels)
        assert not [line for line in said.splitlines() if "KERNEL" in line or "NETWORK" in line or "kernels-community" in line]
