"""Scores and features that are not finite are named by sample, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli.commands import Command
from helpers import randomise

import dehvf_kit
from dehvf_kit.errors import DataError
from dehvf_kit.evaluation.answers import answer
from dehvf_kit.model.feature_files import FeatureFiles
from dehvf_kit.model.features import FeatureStore
from dehvf_kit.model.model import DehvfModel


def built(world: Path, *overrides: str) -> DehvfModel:
    model = dehvf_kit.build(dehvf_kit.load_recipe(world / "tiny.yaml", overrides))
    randomise(model.nodes)
    return model


@pytest.fixture
def overflowing(world: Path, tmp_path: Path) -> Path:
    """An adapter whose memory of any image overflows: finite weights, infinite scores."""
    model = built(world)
    with torch.no_grad():
        model.nodes["projector"].fc2.weight.fill_(3e38)
        model.nodes["projector"].fc2.bias.fill_(3e38)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_eval_generate_and_verify_name_the_sample(overflowing: Path, world: Path, tmp_path: Path, command: Command) -> None:
    before = {file.name: file.read_bytes() for file in overflowing.iterdir()}
    asks = {
        ("eval", overflowing, "--output", tmp_path / "out.jsonl", "--results", tmp_path / "r.json", "--store"): "test0",
        ("verify", overflowing): "test0",
        ("generate", world / "test1.png", "what ?", "--adapter", overflowing): str(world / "test1.png"),
    }
    for words, sample in asks.items():
        ended = command(*words)
        assert ended.code == 1 and ended.out == "", words
        assert f"sample '{sample}'" in ended.err and "not finite" in ended.err, ended.err
    assert not (tmp_path / "out.jsonl").exists() and not (tmp_path / "r.json").exists()
    assert {file.name: file.read_bytes() for file in overflowing.iterdir()} == before


def test_one_bad_row_among_good_ones_is_the_one_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(world)
    samples = model.recipe.data.samples("test")
    forward = model.decoder.forward

    def spoilt(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits[2 * len(output.logits) // len(samples), -1, 3] = float("nan")
        return output

    monkeypatch.setattr(model.decoder, "forward", spoilt)
    for beams in (1, 3):
        with pytest.raises(DataError, match="sample 'test2'.*not finite"):
            answer(model, samples, num_beams=beams)


def test_a_token_that_is_ruled_out_is_no_fault(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(world)
    forward = model.decoder.forward

    def ruled(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits[:, -1, 3] = -torch.inf
        return output

    monkeypatch.setattr(model.decoder, "forward", ruled)
    assert len(answer(model, model.recipe.data.samples("test"))) == 8


@pytest.mark.parametrize("scale", [float("nan"), 1e6])
def test_features_that_are_not_finite_are_not_kept(scale: float, world: Path, tmp_path: Path) -> None:
    """Not a number in any dtype; a million overflows in float16 alone."""
    model = built(world)
    features = model.vision_features
    model.vision_features = lambda pixels: features(pixels) * scale  # type: ignore[method-assign]
    samples = model.recipe.data.samples("test")
    for store in (FeatureStore(model, torch.float16), FeatureFiles(model, torch.float16, tmp_path / "cache")):
        with pytest.raises(DataError, match="sample 'test0': the features of .*test0.png' are not finite in float16"):
            store.fill(samples)
        assert len(store) == 0
    if scale == 1e6:
        FeatureStore(model, torch.bfloat16).fill(samples)
