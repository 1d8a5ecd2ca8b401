"""Frozen linear layers in 8 or 4 bits, by bitsandbytes through transformers, and what they weigh.

int8: LLM.int8() (arXiv:2208.07339); int4: NF4 in blocks of 64 (QLoRA, arXiv:2305.14314). Embeddings, norms and the output head
stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from dehvf_kit.errors import DehvfError, listing

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

    from dehvf_kit.backbones.attached import import_bitsandbytes

    if import_bitsandbytes() is None:
        raise DehvfError(f"decoder.quantization={kind} needs bitsandbytes; pip install 'dehvf-kit[quantization]'")
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if dtype == "auto":
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def float_experts(decoder: nn.Module) -> dict[str, int]:
    """Weights that int8 and int4 leave in float: experts that are one tensor. Counts by name, `*` for a layer's number."""
    import re

    from torch import nn

    found: dict[str, int] = {}
    for path, module in decoder.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 2 and not isinstance(module, nn.modules.conv._ConvNd):
                name = re.sub(r"\.\d+(?=\.)", ".*", f"{path}.{key}")
                found[name] = found.get(name, 0) + parameter.numel()
    return found


def weight_notes(decoder: nn.Module, kind: Quantization | None) -> list[str]:
    """What the counts of a decoder's bytes do not show: experts left in float, or a checkpoint that is quantised already."""
    experts = float_experts(decoder) if kind is not None else {}
    before = checkpoint_method(decoder.config)
    notes = []
    if experts:
        notes.append(
            f"decoder.quantization={kind} leaves {sum(experts.values()):,} expert weights in float ({listing(experts)}): "
            "bitsandbytes quantises linear layers alone"
        )
    if before:
        notes.append(f"the decoder's checkpoint is quantised already ({before}): its bytes are counted as if it were float")
    return notes


def checkpoint_method(config: Any) -> str:
    """How a checkpoint is quantised by its config (`gptq`, `awq`, ...); "" where it is not."""
    found = getattr(config, "quantization_config", None) or {}
    found = found if isinstance(found, Mapping) else vars(found)
    method = found.get("quant_method", "")
    return str(getattr(method, "value", method))


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
