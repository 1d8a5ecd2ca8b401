"""Reads a decoder's config: of the text model alone, and also where transformers keeps a value for each layer.

A config may hold values that differ between layers (`per_layer_config`: Gemma 4, dots3_note). Reading such a field from the
whole config then raises a RuntimeError, which `getattr(config, name, None)` lets through; hence these functions.
"""

from __future__ import annotations

from typing import Any


def text_config(model: Any) -> Any:
    """The config of a model's text decoder, or the whole config where it has no such part; None of a model without one."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def config_value(config: Any, name: str) -> Any:
    """A config's field, None where it has none, and a list with a value for each layer where the layers differ in it."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return [getattr(layer, name, None) for layer in config.per_layer_config]


def config_size(config: Any, *names: str) -> int | None:
    """The first of some fields that is a positive whole number; where layers differ in it, the largest of them."""
    for name in names:
        value = config_value(config, name)
        sizes = [size for size in (value if isinstance(value, (list, tuple)) else [value]) if type(size) is int and size > 0]
        if sizes:
            return max(sizes)
    return None


def layer_sizes(config: Any, name: str) -> list[int]:
    """A field of every layer [layer], 0 in a layer that has none of it."""
    value = config_value(config, name)
    values = value if isinstance(value, (list, tuple)) else [value] * (config_size(config, "num_hidden_layers") or 0)
    return [size if type(size) is int else 0 for size in values]


def head_sizes(config: Any) -> list[tuple[int, int, int]]:
    """(heads, key heads, width of a head) of every layer's attention [layer]; empty where the config does not say."""
    fields = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
    heads, shared, widths, hidden = (layer_sizes(config, name) for name in fields)
    layers = zip(heads, shared, widths, hidden, strict=False)
    return [(count, keys or count, width or wide // count) for count, keys, width, wide in layers if count]
