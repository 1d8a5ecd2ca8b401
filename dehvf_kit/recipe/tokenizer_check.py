"""Whether the decoder's tokenizer, where it is on this machine, can serve a recipe."""

from __future__ import annotations

import os

from dehvf_kit.data.tokens import tokenizer_faults
from dehvf_kit.errors import DehvfError, Fault
from dehvf_kit.recipe.plugin_manager import plugins
from dehvf_kit.recipe.recipe import Recipe

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def check_tokenizer_of(recipe: Recipe, embedded: int) -> list[Fault]:
    """What is wrong with the decoder's tokenizer; nothing where it is not on this machine, or the decoder brings none.

    embedded: rows of the decoder's embedding, as its config says.
    """
    decoder, sources = recipe.decoder, plugins().registry.sources
    if not hasattr(decoder, "tokenizer") or not decoder.model:
        return []
    place = decoder.location(sources)
    if not any(os.path.isfile(os.path.join(place, name)) for name in FILES) and not _in_hub_cache(place):
        return []
    try:
        tokenizer = decoder.model_copy(update={"download": False}).tokenizer(sources)
    except DehvfError as error:
        return [Fault("decoder", str(error))]
    prompt = recipe.data.prompt if recipe.data is not None else None
    return [Fault("decoder", str(error)) for error in tokenizer_faults(tokenizer, prompt, embedded)]


def _in_hub_cache(name: str) -> bool:
    if os.path.isdir(name) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return False
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in FILES)
    except HFValidationError:  # no name that the hub allows
        return False
