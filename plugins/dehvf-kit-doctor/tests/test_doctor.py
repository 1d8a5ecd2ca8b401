"""`dehvf-kit doctor`: needs configurations alone, says where memory goes and whether the contracts hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.commands import Command
from helpers import LLAMA, VIT

from dehvf_kit.testing import decoder_contract, vision_contract
from dehvf_kit.testing.subject import Broken


@pytest.fixture(autouse=True)
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contracts themselves have tests of their own."""
    for contract, kept in (
        (decoder_contract.CONTRACT, {"zero memory", "left padding"}),
        (vision_contract.VISION_CONTRACT, {"features", "neighbours"}),
    ):
        for item in set(contract) - kept:
            monkeypatch.delitem(contract, item)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", **LLAMA}))
    return file


def test_a_config_file_is_enough_for_a_decoder(command: Command, llama: Path) -> None:
    ended = command("doctor", llama)
    lines = [line.split() for line in ended.out.splitlines()]
    assert ended.code == 0
    assert ["memory", "goes", "into", "4", "of", "4", "layers"] in lines
    assert ["3", "model.layers.3.mlp", "silu", "32"] in lines
    assert ["pass", "zero", "memory"] in lines and ["pass", "left", "padding"] in lines


def test_a_folder_and_json(command: Command, llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vision"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **VIT}))
    ended = command("doctor", llama, folder, "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["ok"]) == (0, True)
    assert found["decoder"]["sites"][0] == {"layer_idx": 0, "path": "model.layers.0.mlp", "activation": "silu", "hidden_size": 32}
    vision = found["vision"]
    assert (vision["num_layers"], vision["num_patches"], vision["hidden_size"]) == (8, 16, 24)
    assert (vision["global_token"], vision["final_norm"]) == ("class token", "LayerNorm")
    assert [item["status"] for item in vision["contract"]] == ["pass", "pass"]


def test_a_broken_item_gives_one(command: Command, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(subject: object) -> None:
        raise Broken("the sky is green")

    monkeypatch.setitem(decoder_contract.CONTRACT, "zero memory", breaks)
    ended = command("doctor", llama)
    assert ended.code == 1 and "broken" in ended.out and "the sky is green" in ended.out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "no layer holds a feed-forward network"),
        ({"model_type": "clip_vision_model"}, "transformers has no causal language model of model_type"),
        ({"model_type": "lama"}, "transformers has no model_type 'lama'; did you mean 'llama'"),
        ([], "holds a list; a config.json holds one object"),
    ],
)
def test_what_has_no_place_for_memory_is_refused(command: Command, tmp_path: Path, config: object, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    ended = command("doctor", file)
    assert ended.code == 1 and message in ended.err and "Traceback" not in ended.err


def test_a_hierarchical_encoder_is_refused_with_the_reason(command: Command, llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "swin.json"
    file.write_text(json.dumps({"model_type": "swin"}))
    ended = command("doctor", llama, file)
    assert ended.code == 1
    assert "SwinModel is hierarchical: its blocks have widths [96, 192, 384, 768]" in ended.err
    assert "the kit reads encoders whose blocks all keep one token a patch" in ended.err


def test_a_name_nobody_knows(command: Command) -> None:
    ended = command("doctor", "nobody/nothing")
    assert ended.code == 1 and "no config of 'nobody/nothing' on this machine" in ended.err
