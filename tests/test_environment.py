"""The environment is obeyed and never written: the hub's cache, offline mode, visible GPUs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from helpers import LLAMA, raw_recipe

PACKAGE = Path(__file__).parents[1] / "dehvf_kit"
COMMIT = "0" * 40


def check(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`dehvf-kit check` on a recipe whose decoder is named by a hub id, which it may fetch."""
    recipe = raw_recipe()
    recipe["decoder"] = {"model": "nobody/tiny", "download": True}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(recipe))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    words = [sys.executable, "-m", "dehvf_kit", "check", str(file)]
    return subprocess.run(words, capture_output=True, text=True, env={**kept, **environment})


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A hub that has nothing, and what it was asked for."""
    asked: list[str] = []

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.mark.nightly
def test_models_are_looked_for_in_hf_home(tmp_path: Path) -> None:
    place = tmp_path / "home" / "hub" / "models--nobody--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "snapshots" / COMMIT).mkdir(parents=True)
    (place / "snapshots" / COMMIT / "config.json").write_text(json.dumps({"model_type": "llama", **LLAMA}))
    found = check(tmp_path, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert "tiny.yaml: ok" in found.stdout, found.stderr
    elsewhere = check(tmp_path, HF_HOME=str(tmp_path / "other"), HF_HUB_OFFLINE="1")
    assert elsewhere.returncode == 1 and "'nobody/tiny'" in elsewhere.stderr and "Traceback" not in elsewhere.stderr


@pytest.mark.nightly
def test_offline_asks_nobody(tmp_path: Path, hub: tuple[str, list[str]]) -> None:
    url, asked = hub
    refused = check(tmp_path, HF_HOME=str(tmp_path), HF_ENDPOINT=url, HF_HUB_OFFLINE="1")
    assert refused.returncode == 1 and asked == []
    check(tmp_path, HF_HOME=str(tmp_path), HF_ENDPOINT=url)
    assert asked, "the same recipe asks the hub where it may"


@pytest.mark.nightly
def test_no_gpu_is_visible_where_none_shall_be() -> None:
    code = (
        "import torch; from dehvf_kit.recipe.sections import bfloat16_is_fast; bfloat16_is_fast(); print(torch.cuda.device_count())"
    )
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout == "0\n"


def test_the_kit_sets_no_variable_of_this_process() -> None:
    """But what tells accelerate that the decoder is split already, which it asks the launcher's variables for."""
    for file in set(PACKAGE.rglob("*.py")) - {PACKAGE / "training" / "distributed.py"}:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else []
            written = [ast.unparse(target) for target in targets]
            if isinstance(node, ast.Call):
                written.append(ast.unparse(node.func))
            names = ("os.environ[", "os.putenv", "os.unsetenv", "os.environ.update", "os.environ.setdefault", "os.environ.pop")
            assert not any(text.startswith(names) for text in written), f"{file}:{node.lineno}"
