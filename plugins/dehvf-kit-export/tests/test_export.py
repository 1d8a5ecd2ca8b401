"""Exported files beside the model, run by ONNX Runtime and torch.export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli.commands import at_most, command  # noqa: F401 - a fixture
from evaluation.benchmarks import recipe, towers

import dehvf_kit
from dehvf_kit.errors import DehvfError

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = towers(tmp_path_factory.mktemp("export"))
    torch.manual_seed(0)
    model = dehvf_kit.build(dehvf_kit.load_recipe(recipe(folder, "{type: jsonl}")))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "adapter")
    model.detach()
    return folder / "adapter"


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_command_writes_files_that_answer_as_the_model_does(adapter: Path, tmp_path: Path, command, kind: str) -> None:  # noqa: F811
    from dehvf_kit_export.files import Exported

    copy = shutil.copytree(adapter, tmp_path / "run" / "adapter")
    ended = command("export", tmp_path / "run", "--format", kind, "--output", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [one["case"] for one in found["cases"]] == ["one row", "four rows, padded"]
    for one in found["cases"]:  # worst seen 8.3e-6 of logits that range over 5.2
        assert max(one["memory"], one["prefill"], one["decode"]) < 2e-5 and one["changed_tokens"] == 0
    assert f"export_{kind}" in json.loads((copy / "measured.json").read_text())
    assert f"| {kind}: one row |" in (copy / "README.md").read_text()
    model = dehvf_kit.load(copy)
    picture = torch.randn(2, *[3, 32, 32])
    inputs = model.processor(text=["What colour is it ?", "red"])
    said = model.generate(**inputs, pixel_values=picture, max_new_tokens=4, min_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    again, _ = Exported(tmp_path / "out").generate(inputs["input_ids"], inputs["attention_mask"], [picture], 4)
    assert torch.equal(said, again)
    model.detach()


def test_parts_are_the_model(adapter: Path) -> None:
    from dehvf_kit_export.files import example_pixels
    from dehvf_kit_export.parts import EMPTY, Decoder, Encoder, empty_cache

    model = dehvf_kit.load(adapter).eval()
    pixels = example_pixels(model, 2)
    tokens = torch.tensor([[3, 4, 5], [6, 7, 8]])
    with torch.no_grad():
        encoder = Encoder(model, pixels)
        mask = torch.cat([torch.zeros(2, EMPTY, dtype=torch.long), torch.ones_like(tokens)], 1)
        memory, flags = encoder(*pixels.values()), torch.ones(2, dtype=torch.bool)
        logits = Decoder(model, encoder)(tokens, mask, flags, memory, empty_cache(model, 2))[0]
        expected = model(tokens, pixel_values=pixels["vision"]).logits
    assert (logits - expected).abs().max() < 1e-5 < expected.abs().max()  # worst seen 1.7e-6
    model.detach()


@pytest.mark.parametrize(("words", "phrase"), [(["--format", "gguf"], "neither onnx nor pt2"), (["-o", "."], "is there already")])
def test_what_is_refused(adapter: Path, command, words: list[str], phrase: str) -> None:  # noqa: F811
    ended = command("export", adapter, *words)
    assert ended.code == 1 and phrase in ended.err


@pytest.mark.parametrize("name", ["export", "verify"])
def test_what_is_no_adapter_is_named(tmp_path: Path, command, name: str) -> None:  # noqa: F811
    (tmp_path / "file").write_text("")
    for given, phrase in (
        ("nowhere", "there is no such folder"),
        ("file", "is a file; an adapter is a folder"),
        (".", "not an adapter"),
    ):
        ended = command(name, tmp_path / given, *(["--output", tmp_path / "out"] if name == "export" else []))
        assert ended.code == 1 and ended.err.strip().splitlines()[-1].startswith(f"{tmp_path / given}: {phrase}"), ended.err


def test_a_sliding_window_is_refused(adapter: Path) -> None:
    from dehvf_kit_export.parts import attached

    model = dehvf_kit.load(adapter)
    model.decoder.config.layer_types = ["sliding_attention"]
    with pytest.raises(DehvfError, match="full attention alone"):
        attached(model)
    model.detach()


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_full_disk_is_an_error_and_no_end_of_the_process(tmp_path: Path, kind: str) -> None:
    from dehvf_kit_export.files import _write

    names = {"inputs": ["x"], "outputs": ["y"]}
    with at_most(5000), pytest.raises(OSError, match="File too large"):
        _write(torch.nn.Linear(64, 64), (torch.ones(1, 64),), {"input": None}, tmp_path / f"part.{kind}", names)
