"""Ways of decoding: guidance and drafts of an assistant, in which a second pass reads another memory; beams; compiled tokens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from transformers import CompileConfig
from transformers.generation.logits_process import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

from dehvf_kit.backbones import attached
from dehvf_kit.errors import DehvfError
from dehvf_kit.model.attachment import MemoryScope

if TYPE_CHECKING:
    from transformers import GenerationConfig

log = logging.getLogger(__name__)

MIXED_BY_CACHES = {"minimax": "beams", "recurrent_gemma": "beams", "rwkv": "rows"}  # in transformers 5.23.0


class WithoutImages:
    """A model's decoder, called while it reads the memory of rows without images."""

    def __init__(self, model: Any, rows: int) -> None:
        self.model, self.memory = model, model.memory(rows)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with MemoryScope(self.model.nodes, self.memory):
            return self.model.decoder(*args, **kwargs)


def guided(model: Any, rows: int, config: GenerationConfig, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `generate` in which guidance's unconditional pass sees no image; `config` loses its `guidance_scale`."""
    given = dict(kwargs)
    scale = config.guidance_scale
    if scale is None or scale == 1 or not model.reads_images:
        return given
    config.guidance_scale = None
    negative = (given.pop(name, None) for name in ("negative_prompt_ids", "negative_prompt_attention_mask"))
    blind: Any = WithoutImages(model, rows)
    ids, mask = negative
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, blind, ids, mask, use_cache=config.use_cache)
    given["logits_processor"] = LogitsProcessorList([guidance, *(given.get("logits_processor") or [])])
    return given


@contextlib.contextmanager
def drafting(kwargs: Mapping[str, Any], rows: int, images: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Keywords of `generate` whose assistant, if it is a DehvfModel, drafts with the same images in its memory.

    Raises: DehvfError for an assistant that puts tokens into the input: its columns are not the text's.
    """
    assistant = kwargs.get("assistant_model")
    if assistant is None or not hasattr(assistant, "run_graph"):
        yield dict(kwargs)
        return
    if any(assistant.graph.nodes[name].config.attaches == "input" for name in assistant.nodes):
        raise DehvfError("assistant_model puts tokens into the input, which its drafts cannot skip; use one that writes memory")
    with MemoryScope(assistant.nodes, assistant.memory(rows, **images)):
        yield {**kwargs, "assistant_model": assistant.decoder}


def without_mixing_cache(config: GenerationConfig, decoder: Any, rows: int) -> None:
    """Generate without a cache, with a warning, where a family's cache gives a row or a beam another one's states."""
    mixed, beams = MIXED_BY_CACHES.get(decoder.config.model_type), config.num_beams or 1
    several = beams > 1 or (mixed == "rows" and rows * (config.num_return_sequences or 1) > 1)
    if mixed is not None and several and config.use_cache is not False:
        log.warning(
            f"generating without a cache: {decoder.config.model_type}'s mixes the states of {mixed} in transformers; "
            f"faster: {'greedy search' if mixed == 'beams' else 'one row at a time'} (docs/bases.md)"
        )
        config.use_cache = False


def compile_tokens(config: GenerationConfig, decoder: Any, given: Mapping[str, Any], prompt: int) -> None:
    """Have transformers compile the pass of a single token, in a cache of a fixed length: 64, 128, 256 and so on.

    Settings that name a cache, an assistant or `disable_compile` stay as they are, and so do decoders without a static cache.
    """
    own = any(given.get(name) is not None for name in ("past_key_values", "assistant_model")) or config.cache_implementation
    if own or config.disable_compile or config.use_cache is False or not getattr(decoder, "_can_compile_fullgraph", False):
        return
    whole = config.max_length or 20 if config.max_new_tokens is None else prompt + config.max_new_tokens
    config.cache_implementation, config.max_cache_len = "static", max(64, 1 << (whole - 1).bit_length())
    config.compile_config = CompileConfig(backend=attached.SETTINGS.get("backend", "inductor"), fullgraph=False)
    config.compile_config._compile_all_devices = True
