"""Adapters beside a decoder's attention: what they need of it, and hooks on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dehvf_kit.api import BuildContext, ConfigMismatchError, DecoderSpec
from dehvf_kit.backbones.decoder import PROJECTIONS


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


def before_attention(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Pass the hidden states [rows, token, hidden] on their way into an attention module through `change` (None: as is)."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        named = "hidden_states" in kwargs
        changed = change(kwargs["hidden_states"] if named else args[0])
        if changed is None:
            return None
        return (args, {**kwargs, "hidden_states": changed}) if named else ((changed, *args[1:]), kwargs)

    return module.register_forward_pre_hook(hook, with_kwargs=True)
