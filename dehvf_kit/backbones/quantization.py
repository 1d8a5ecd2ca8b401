"""Frozen linear layers in 8 or 4 bits, by bitsandbytes through transformers, and what they weigh.

int8: LLM.int8() (arXiv:2208.07339); int4: NF4 in blocks of 64 (QLoRA, arXiv:2305.14314). Embeddings, norms and the output head
stay as they are.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from dehvf_kit.errors import DehvfError

if TYPE_CHECKING:
    import torch
    from torch import nn

Quantization = Literal["int8", "int4"]
BLOCK = 64
"""Weights that share one 4-byte scale in NF4."""


def quantization_config(kind: Quantization, dtype: torch.dtype | Literal["auto"]) -> Any:
    """What `from_pretrained` takes as `quantization_config`. dtype: what 4-bit layers compute in; auto: bfloat16 on a GPU.

    Raises: DehvfError where bitsandbytes is missing.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise DehvfError(f"decoder.quantization={kind} needs bitsandbytes; pip install 'dehvf-kit[quantization]'")
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if dtype == "auto":
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def weight_bytes(decoder: nn.Module, width: int, kind: Quantization | None) -> int:
    """Bytes of a decoder's weights, counted on one that is not quantised (it may be on the meta device).

    width: bytes of a weight that stays as it is. int8 adds a 4-byte scale for each output, int4 one for each block.
    """
    from torch import nn

    linears = [part for part in decoder.modules() if type(part) is nn.Linear and part is not decoder.get_output_embeddings()]
    packed = sum(part.weight.numel() for part in linears) if kind is not None else 0
    kept = (sum(parameter.numel() for parameter in decoder.parameters()) - packed) * width
    if kind == "int8":
        return kept + packed + 4 * sum(part.out_features for part in linears)
    if kind == "int4":
        return kept + sum(-(-part.weight.numel() // 2) + 4 * -(-part.weight.numel() // BLOCK) for part in linears)
    return kept
