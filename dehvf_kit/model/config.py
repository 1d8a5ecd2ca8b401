"""The transformers config that marks a folder as a DEHVF adapter, and the generation settings of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig, PretrainedConfig

if TYPE_CHECKING:
    from torch import nn

    from dehvf_kit.recipe.recipe import Recipe

# Settings of a base model that say nothing without sampling or beams; transformers refuses to save them then.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")


class DehvfConfig(PretrainedConfig):
    """Says `model_type: dehvf`; what was built stands in `adapter_config.json` beside it."""

    model_type = "dehvf"


def generation_config(decoder: nn.Module, recipe: Recipe | None, tokenizer: Any = None) -> GenerationConfig:
    """The decoder's own settings, over them the recipe's, and the tokenizer's padding and end tokens.

    An answer ends at the token that labels end with, which is the tokenizer's, and at every one that the decoder ends at.
    """
    known = getattr(decoder, "generation_config", None)
    config = GenerationConfig(**known.to_dict()) if known is not None else GenerationConfig()
    if recipe is not None:
        wanted = recipe.generation.model_dump()
        if not wanted["do_sample"]:
            wanted |= dict.fromkeys(SAMPLING)
        if wanted["num_beams"] == 1:
            wanted |= dict.fromkeys(BEAMS)
        for name, value in wanted.items():
            setattr(config, name, value)
    end = getattr(tokenizer, "eos_token_id", None)
    if end is not None:
        known = config.eos_token_id
        others = [known] if isinstance(known, int) else list(known or ())
        ends = [end, *(token for token in others if token != end)]
        config.eos_token_id = ends if len(ends) > 1 else end
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is not None:
        config.pad_token_id = pad
    return config
