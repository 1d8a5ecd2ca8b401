"""The precision that training takes on this machine, and where float16 goes without loss scaling."""

from __future__ import annotations

import os
import timeit

import torch

from dehvf_kit.errors import DehvfError
from dehvf_kit.recipe.files import encoder_path
from dehvf_kit.recipe.recipe import Recipe

ACCELERATE = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def bfloat16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def faster_dtype() -> str:
    """`bfloat16` where this machine multiplies its matrices faster than float32's; measured on a CPU, in about 50 ms.

    An instruction set does not tell: with avx512_bf16, torch 2.14.1 was 1.7 times slower in bfloat16 on one Xeon, faster on others.
    """

    def seconds(dtype: torch.dtype) -> float:
        rows, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        return min(timeit.repeat(lambda: torch.nn.functional.linear(rows, weight), number=1, repeat=6))

    if torch.cuda.is_available():
        return "bfloat16" if bfloat16_is_fast() else "float32"
    return "bfloat16" if seconds(torch.bfloat16) < seconds(torch.float32) else "float32"


def precision_here(precision: str) -> str:
    """A recipe's precision; `auto` is bfloat16 where it is computed in hardware, else float16 on a GPU and float32 on a CPU.

    Raises: DehvfError where the launcher asks for another one.
    """
    if precision == "auto":
        precision = "bfloat16" if bfloat16_is_fast() else "float16" if torch.cuda.is_available() else "float32"
    if (launched := os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()) not in ("no", ACCELERATE[precision]):
        raise DehvfError(
            f"the launcher asks for mixed_precision {launched}, the recipe for training.precision={precision}; set "
            'mixed_precision: "no", and the recipe\'s field as you want it'
        )
    return precision


def unscaled(recipe: Recipe, decoder: str) -> str:
    """What to say where gradients pass float16 weights, of a dtype `decoder` or an encoder's, without loss scaling; else ""."""
    adapted = any(node.config.role == "vision_adapter" for node in recipe.nodes.values())
    found = ["decoder"] if decoder.removeprefix("torch.") == "float16" else []
    found += [encoder_path(name) for name, tower in recipe.vision.items() if adapted and tower.dtype == "float16"]
    return "" if not found or precision_here(recipe.training.precision) != "float32" else (
        f"{' and '.join(found)}: gradients pass float16 weights without loss scaling, so small ones are rounded to zero and large "
        "ones overflow; set training.precision=float16, or dtype to bfloat16"
    )  # fmt: skip
