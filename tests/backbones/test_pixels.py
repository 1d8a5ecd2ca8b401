"""Pixel values are prepared as the encoder's own image processor would, or a recipe is told how it differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pydantic import ValidationError

from dehvf_kit.backbones.vision.config import HfVisionConfig, ImageConfig, facts_of, own_images, said

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# Settings of preprocessor_config.json -> the recipe's fields, and what the kit does not do.
OWN: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "ViT": (
        {"image_processor_type": "ViTImageProcessor"},
        {"size": 224, "resize": "squash", "normalisation": "half", "resample": "bilinear"},
        (),
    ),
    "BEiT": (
        {"image_processor_type": "BeitImageProcessor", "do_center_crop": True, "size": 256},
        {"size": 224, "resize": "squash", "normalisation": "half", "resize_to": 256},
        (),
    ),
    "DINOv2": (
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **IMAGENET},
        {"size": 224, "resize": "crop", "normalisation": "imagenet", "resize_to": 256},
        (),
    ),
    "CLIP": (
        {"image_processor_type": "CLIPImageProcessor", "crop_size": 224, "size": {"shortest_edge": 224}},
        {"size": 224, "resize": "crop", "normalisation": "clip"},
        (),
    ),
    "AIMv2": (
        {"image_processor_type": "CLIPImageProcessor", "size": {"height": 336, "width": 336}, "do_center_crop": False},
        {"size": 336, "resize": "squash", "normalisation": "clip"},
        (),
    ),
    "RADIO, which normalises inside": (
        {"image_processor_type": "CLIPImageProcessor", "do_normalize": False, "size": {"shortest_edge": 224}},
        {"size": 224, "resize": "crop", "normalisation": "none"},
        (),
    ),
    "TIPSv2": (
        {"image_processor_type": "Tipsv2ImageProcessor"},
        {"size": 448, "resize": "squash", "normalisation": "none", "resample": "bilinear"},
        (),
    ),
    "Gemma 4": ({"image_processor_type": "Gemma4ImageProcessor"}, {"normalisation": "none"}, ("sizes_by_aspect_ratio",)),
    "Pixtral": ({"image_processor_type": "PixtralImageProcessor"}, {"normalisation": "clip"}, ("pad", "sizes_by_aspect_ratio")),
    "PP-FormulaNet": (
        {"image_processor_type": "PPFormulaNetImageProcessor"},
        {"size": 768, "resize": "squash", "mean": [0.7931] * 3, "std": [0.1738] * 3, "resample": "bilinear"},
        ("crop_margin", "pad", "thumbnail"),
    ),
    "0 to 255 as they are": (
        {"image_processor_type": "CLIPImageProcessor", "do_rescale": False, "image_mean": [123.0] * 3, "image_std": [58.0] * 3},
        {"size": 224, "resize": "crop", "mean": [123.0] * 3, "std": [58.0] * 3, "rescale": 1.0},
        (),
    ),
}


def folder(tmp_path: Path, settings: dict[str, Any]) -> str:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(tmp_path)


@pytest.mark.parametrize("case", OWN)
def test_a_checkpoints_processor_is_read(case: str, tmp_path: Path) -> None:
    settings, fields, further = OWN[case]
    if case in ("TIPSv2", "PP-FormulaNet"):
        pytest.importorskip("torchvision", reason="transformers has these two processors with torchvision alone")
    own = own_images(folder(tmp_path, settings))
    assert own is not None and own.source == settings["image_processor_type"]
    assert own.fields() == fields and own.further == further
    assert own.differences(ImageConfig(**own.fields())) == {}


SAME_PIXELS = ["ViT", "BEiT", "DINOv2", "CLIP", "AIMv2", "RADIO, which normalises inside", "0 to 255 as they are"]


@pytest.mark.parametrize("case", SAME_PIXELS)
def test_its_fields_give_its_pixels(case: str, tmp_path: Path) -> None:
    settings, fields, _ = OWN[case]
    own = transformers.AutoImageProcessor.from_pretrained(folder(tmp_path, settings), backend="pil")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8))
    ours = ImageConfig(**fields).processor()(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, own(image, return_tensors="pt")["pixel_values"])


def test_recipes_without_the_new_fields_keep_their_meaning() -> None:
    found = ImageConfig(size=32, resize="crop", normalisation="clip").processor().to_dict()
    expected = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, resample=3,
        image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
    ).to_dict()  # fmt: skip
    assert {key: found[key] for key in found if found[key] is not None} == {
        key: expected[key] for key in expected if expected[key] is not None
    }


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mean": [0.5] * 3}, "one of mean and std"),
        ({"mean": [0.5] * 2, "std": [0.5] * 3}, "mean"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, "std"),
        ({"rescale": 0}, "rescale"),
        ({"resize_to": 100}, "at least size, 224"),
        ({"resample": "cubic"}, "resample"),
    ],
)
def test_fields_that_cannot_be_meant_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ImageConfig(**fields)


def test_what_cannot_be_read_is_no_processor(tmp_path: Path) -> None:
    assert own_images(str(tmp_path)) is None and own_images("nobody/nothing") is None
    (tmp_path / "preprocessor_config.json").write_text("{")
    assert own_images(str(tmp_path)) is None


def test_a_processor_of_unknown_class_counts_by_what_its_file_says(tmp_path: Path) -> None:
    settings = {"image_processor_type": "OfItsOwn", "size": 64, "do_normalize": False, "resample": 2, "do_tile": True}
    own = HfVisionConfig(model=folder(tmp_path, settings)).own_images({})
    assert own is not None and own.further == ("tile",)
    assert own.fields() == {"size": 64, "resize": "squash", "normalisation": "none", "resample": "bilinear"}


def test_a_processor_inside_processor_config_is_read(tmp_path: Path) -> None:
    text = json.dumps({"processor_class": "LlavaProcessor", "image_processor": {"image_processor_type": "ViTImageProcessor"}})
    (tmp_path / "processor_config.json").write_text(text)
    own = own_images(str(tmp_path))
    assert own is not None and own.fields()["normalisation"] == "half"


def test_facts_in_words() -> None:
    own = facts_of({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True, "resample": 3, "do_normalize": False})
    assert said(own.facts) == "224 x 224 (crop, from 256), bicubic, times 1/255, not normalised"
    assert "times 1/255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in said(ImageConfig().facts())
