"""Sizes of LLaMA decoders and CLIP encoders straight from plain configs, without transformers.

Importing transformers' model classes takes seconds, most of what `dehvf-kit check` would cost. For a config that spells out
every size of one of these two families the sizes are arithmetic. Each function returns None for anything else: another family,
a field it does not know, a value that transformers might refuse; the model is then built on the meta device, which also words
the fault. `tests/backbones/test_known_specs.py` compares both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dehvf_kit.api.shapes import MAX_LAYERS, DecoderSpec, VisionSpec
from dehvf_kit.backbones.ffn.overrides import FFN_OVERRIDES

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LARGEST = 2**31


def llama_spec(config: Mapping[str, Any] | None) -> DecoderSpec | None:
    """Sizes of a LLaMA decoder whose config holds these fields and no others, else None."""
    known = _sizes(config, "llama", ("vocab_size",), ("max_position_embeddings", "num_key_value_heads"), ("rms_norm_eps",))
    if known is None:
        return None
    width, inner, layers, heads = (known[name] for name in SIZES)
    key_value_heads = known.get("num_key_value_heads", heads)
    head_dim = width // heads
    if head_dim % 2 or heads % key_value_heads:
        return None
    attention = 2 * width * width + 2 * width * key_value_heads * head_dim
    layer = attention + 3 * width * inner + 2 * width
    return DecoderSpec(
        hidden_size=width,
        num_layers=layers,
        vocab_size=known["vocab_size"],
        intermediate_size=inner,
        num_parameters=2 * known["vocab_size"] * width + layers * layer + width,
        activation="silu",
        model_type="llama",
        num_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        max_positions=known.get("max_position_embeddings", 2048),
    )


def clip_vision_spec(config: Mapping[str, Any] | None, image_size: int) -> VisionSpec | None:
    """Sizes of a CLIP encoder whose config holds these fields and no others, at the image size it was made for, else None."""
    known = _sizes(config, "clip_vision_model", ("patch_size", "image_size"), ("projection_dim",))
    if known is None or known["image_size"] != image_size or known["patch_size"] > image_size:
        return None
    return VisionSpec(
        hidden_size=known["hidden_size"],
        num_layers=known["num_hidden_layers"],
        num_patches=(image_size // known["patch_size"]) ** 2,
        image_size=image_size,
        intermediate_size=known["intermediate_size"],
        model_type="clip_vision_model",
    )


def _sizes(
    config: Mapping[str, Any] | None,
    model_type: str,
    required: tuple[str, ...],
    optional: tuple[str, ...],
    fractions: tuple[str, ...] = (),
) -> dict[str, int] | None:
    """The whole numbers of a config of this family, where all of them are there and plausible and nothing else is."""
    if config is None or config.get("model_type") != model_type or model_type in FFN_OVERRIDES:
        return None
    if set(config) - {"model_type", *SIZES, *required, *optional, *fractions}:
        return None
    if any(type(config[name]) is not float or not 0 < config[name] < 1 for name in fractions if name in config):
        return None
    sizes = {name: config[name] for name in (*SIZES, *required, *optional) if name in config}
    if any(type(size) is not int or not 0 < size < LARGEST for size in sizes.values()):
        return None
    if not sizes.keys() >= {*SIZES, *required} or sizes["num_hidden_layers"] > MAX_LAYERS:
        return None
    return sizes if sizes["hidden_size"] % sizes["num_attention_heads"] == 0 else None
