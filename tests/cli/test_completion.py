"""What a shell completes, and that it costs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

COMPLETE = """
import json, sys
from dehvf_kit.cli.main import app
try:
    app(prog_name="dehvf-kit")
except SystemExit:
    pass
print(json.dumps([name for name in ("torch", "transformers") if name in sys.modules]))
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dehvf-kit re", ["report", "reproduce"]),
        ("dehvf-kit reproduce figure", ["figure2", "figure3", "figure4"]),
        ("dehvf-kit new-plugin mine --kind ", ["component", "data", "decoder", "injector", "vision"]),
        ("dehvf-kit graph a.yaml --format s", ["svg"]),
        ("dehvf-kit plan a.yaml --gpu h", ["h100-80gb", "h200-141gb"]),
        ("dehvf-kit list lay", ["layer_query"]),
    ],
)
def test_words_complete(words: str, offered: list[str]) -> None:
    asked = {"_DEHVF_KIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    ended = subprocess.run(
        [sys.executable, "-c", COMPLETE], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    *found, loaded = ended.stdout.splitlines()
    assert sorted(found) == offered and json.loads(loaded) == []
