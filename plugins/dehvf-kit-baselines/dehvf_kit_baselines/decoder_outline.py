"""A decoder known by its sizes alone: its modules by path, those that are maps or norms of its layers, and an outline of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from dehvf_kit.api import DecoderSpec
from dehvf_kit.backbones.decoder import decoder_spec
from dehvf_kit.backbones.map_hooks import routed


def modules_of(decoder: DecoderSpec) -> Mapping[str, Any]:
    """A decoder's modules by path; those of a LLaMA whose config alone was read are made from its sizes."""
    return decoder.modules if decoder.modules or decoder.model_type != "llama" else _llama_modules(decoder)


@lru_cache(maxsize=4)
def _llama_modules(decoder: DecoderSpec) -> Mapping[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_key_value_heads,
        "vocab_size": decoder.vocab_size,
    }
    with torch.device("meta"):
        return decoder_spec(LlamaForCausalLM(LlamaConfig(**sizes))).modules


def in_layer(path: str) -> bool:
    """Whether a map is a layer's, and no expert's or router's, which see some tokens of a batch only."""
    return bool(re.search(r"\.\d+\.", path)) and not routed(path)


def is_norm(path: str, linear: Any, weights: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a module norms: one weight for each number of the hidden states, perhaps with a bias, and no map."""
    named = re.search(r"norm|ln|layernorm", path.rsplit(".", 1)[-1], re.IGNORECASE)
    return bool(named) and linear is None and "weight" in weights and all(len(shape) == 1 for shape in weights.values())


def outlined(decoder: DecoderSpec) -> nn.Module:
    """The decoder's modules that hold weights, of the right sizes, without numbers and without a forward pass."""
    from transformers.pytorch_utils import Conv1D

    root = nn.Module()
    with torch.device("meta"):
        for path, (kind, linear, weights) in modules_of(decoder).items():
            if not path:
                continue
            if linear is not None:
                module: nn.Module = Conv1D(linear[1], linear[0]) if kind == "Conv1D" else nn.Linear(*linear, "bias" in weights)
            else:
                module = nn.Module()
                for name, shape in weights.items():
                    module.register_parameter(name, nn.Parameter(torch.empty(shape), requires_grad=False))
            owner, _, leaf = path.rpartition(".")
            try:
                parent = root.get_submodule(owner)
            except AttributeError:
                continue  # inside a linear map
            parent.add_module(leaf, module)
    return root
