"""Adapters beside a decoder's attention: what they need of it, and hooks on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dehvf_kit.api import BuildContext, ConfigMismatchError, DecoderSpec
from dehvf_kit.backbones.decoder import PROJECTIONS
from dehvf_kit.backbones.map_hooks import role_of
from dehvf_kit.errors import listing
from dehvf_kit_baselines.peft_tuner import in_layer


def needs_llama_attention(decoder: DecoderSpec) -> None:
    """Raises: ConfigMismatchError for a decoder whose attention is not of LLaMA's kind."""
    if not decoder.num_heads:
        raise ConfigMismatchError(
            f"works beside attention of LLaMA's kind: in every layer one module with {', '.join(PROJECTIONS)}; this decoder "
            f"('{decoder.model_type}') has none; take LLaMA, Mistral, Qwen2, SmolLM2 or their like"
        )


def projection_sizes(context: BuildContext) -> dict[str, tuple[int, int]]:
    """(in, out) of each projection."""
    spec = context.decoder
    hidden, heads = spec.hidden_size, spec.num_heads * spec.head_dim
    shared = spec.num_key_value_heads * spec.head_dim
    return {"q_proj": (hidden, heads), "k_proj": (hidden, shared), "v_proj": (hidden, shared), "o_proj": (heads, hidden)}


def attention_modules(modules: Mapping[str, Any]) -> list[str]:
    """Paths of the attention of a decoder's layers, one in each: the module that holds its query map, or its joint one.

    Raises: ConfigMismatchError where no layer has one, or one has several (cross-attention too).
    """
    maps = [path for path, (_, linear, _) in modules.items() if linear is not None and in_layer(path)]
    found = list(dict.fromkeys(path.rpartition(".")[0] for path in maps if role_of(path) in ("query", "qkv")))
    layers = [path.split(".")[: 1 + next(i for i, part in enumerate(path.split(".")) if part.isdigit())] for path in found]
    if not found or any(one == other for one, other in pairwise(layers)):
        held = listing(dict.fromkeys(role_of(path) for path in maps))
        raise ConfigMismatchError(f"needs one attention with a query map in each layer; this decoder's layers hold the maps {held}")
    return found


def before_attention(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Pass the hidden states [rows, token, hidden] on their way into an attention module through `change` (None: as is)."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        name = next((name for name in ("hidden_states", "hidden", "x") if name in kwargs), None) if not args else None
        changed = change(args[0] if name is None else kwargs[name])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    return module.register_forward_pre_hook(hook, with_kwargs=True)
