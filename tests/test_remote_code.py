"""Code that comes with a checkpoint runs where a recipe says so, and then it is said aloud."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from cli.commands import Command
from training.conftest import tokenizer, world  # noqa: F401 - fixtures

from dehvf_kit.backbones.decoder import HfDecoderConfig
from dehvf_kit.errors import DehvfError, RemoteCodeWarning

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(__file__).with_name("ran").touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A decoder that comes with its own code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(world / "decoder", tmp_path / "own"))
    (folder / "own.py").write_text(CODE)
    known = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**known, "model_type": "own", "auto_map": code}))
    return folder


def test_it_is_off_by_default(own: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RemoteCodeWarning)
        with pytest.raises(DehvfError):
            HfDecoderConfig(model=str(own)).load({})
    assert not list(tmp_path.rglob("ran"))


def test_it_is_said_aloud(own: Path, tmp_path: Path) -> None:
    with pytest.warns(RemoteCodeWarning, match=f"Python code that comes with '{own}' is run on this machine"):
        model = HfDecoderConfig(model=str(own), trust_remote_code=True).load({})
    assert type(model).__name__ == "OwnForCausalLM" and list(tmp_path.rglob("ran"))


def test_a_command_says_it_in_one_line(own: Path, world: Path, command: Command) -> None:  # noqa: F811
    words = ["check", world / "tiny.yaml", f"decoder.model={own}"]
    assert "warning" not in command(*words).err
    ended = command(*words, "decoder.trust_remote_code=true")
    lines = [line for line in ended.err.splitlines() if line.startswith("warning: ")]
    assert lines and f"trust_remote_code is true: Python code that comes with '{own}'" in lines[0]
