"""Loads a vision encoder's weights, also from a checkpoint of the larger model that holds it (LLaVA, Qwen-VL, BLIP-2)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dehvf_kit.backbones.ffn.sites import ffn_sites
from dehvf_kit.errors import VisionError, listing

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_encoder(
    encoder_class: type[PreTrainedModel], location: str, config: PretrainedConfig, **arguments: Any
) -> PreTrainedModel:
    """An encoder with its weights from a folder or hub id.

    Where they stand below another name (`model.visual.blocks.0...`), the name is found among the checkpoint's keys.
    Raises: OSError where there is no checkpoint; VisionError where it lacks weights that features depend on, which
    transformers would leave random.
    """
    model, info = _load(encoder_class, location, config, arguments)
    missing = _needed(model, info["missing_keys"])
    prefix = _prefix(missing, info["unexpected_keys"]) if missing else None
    if prefix is not None:
        model, info = _load(
            encoder_class, location, config, {**arguments, "key_mapping": {f"^{re.escape(prefix)}": ""}}
        )
        missing = _needed(model, info["missing_keys"])
    if missing:
        raise VisionError(
            f"'{location}' lacks {len(missing)} weights of {type(model).__name__}, for example {listing(missing[:2])}; "
            "give a checkpoint of the encoder itself, or load it yourself and hand it over as build(vision=...)"
        )
    return model


def _load(
    encoder_class: type[PreTrainedModel], location: str, config: PretrainedConfig, arguments: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    return encoder_class.from_pretrained(location, config=config, output_loading_info=True, **arguments)


def _needed(model: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """The missing weights that features depend on: those of blocks and embeddings, not of poolers and heads."""
    blocks = tuple({f"{site.layer_path}." for site in ffn_sites(model)})
    return sorted(
        name
        for name in missing
        if (name.startswith(blocks) or "embed" in name)
        and not any(word in name for word in ("pool", "head", "mask_token"))
    )


def _prefix(wanted: Iterable[str], found: Iterable[str]) -> str | None:
    """What stands before most of the wanted names among the names found (`model.visual.`); None where nothing does."""
    names, counts = set(wanted), Counter[str]()
    for name in found:
        parts = name.split(".")
        cuts = (".".join(parts[:length]) for length in range(1, len(parts)))
        counts.update(f"{cut}." for cut in cuts if name[len(cut) + 1 :] in names)
    return counts.most_common(1)[0][0] if counts else None
