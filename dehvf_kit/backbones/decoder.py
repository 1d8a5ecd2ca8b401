"""A decoder language model from transformers, of any family that has feed-forward networks: its sizes, weights and attention."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dehvf_kit.api.registry import Source
from dehvf_kit.api.shapes import DecoderSpec
from dehvf_kit.backbones.base import (
    TowerConfig,
    config_size,
    first_line,
    head_sizes,
    not_loaded,
    refuse_missing,
    require_local,
    text_config,
    torch_dtype,
)
from dehvf_kit.backbones.known_specs import llama_spec
from dehvf_kit.backbones.quantization import Quantization
from dehvf_kit.errors import DecoderError, DehvfError, listing

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


class HfDecoderConfig(TowerConfig):
    """A transformers decoder, or a folder with LLaMA as Meta released it; its parts are found by structure."""

    role: ClassVar[str] = "decoder"
    type: Literal["hf"] = "hf"
    quantization: Quantization | None = Field(
        None, description="frozen linear layers in 8 or 4 bits (int8, int4); needs the extra quantization"
    )

    def original(self, sources: Mapping[str, Source]) -> str | None:
        """The folder, where the model is LLaMA in its original layout (params.json, consolidated.*.pth)."""
        location = self.location(sources) if self.model and self.model not in sources else ""
        return location if location and is_original(location) else None

    def hf_config(self, sources: Mapping[str, Source]) -> PretrainedConfig:
        folder = None if self.config is not None else self.original(sources)
        if folder is None:
            return super().hf_config(sources)
        from dehvf_kit.backbones.llama_original import original_config

        return original_config(folder)

    def spec(self, sources: Mapping[str, Source]) -> DecoderSpec:
        """Sizes of the decoder, from its config alone."""
        plain = type(self).meta is HfDecoderConfig.meta and self.config is not None and not self.trust_remote_code
        known = llama_spec(self.config) if plain else None
        return known or decoder_spec(self.meta(sources))

    def meta(self, sources: Mapping[str, Source]) -> PreTrainedModel:
        """The decoder on the meta device: all its modules, none of its weights."""
        import torch
        from transformers import AutoModelForCausalLM

        config = self.hf_config(sources)
        self.warn_of_code()
        if type(config) not in AutoModelForCausalLM._model_mapping and not self.trust_remote_code:
            raise DehvfError(f"transformers has no causal language model of model_type '{config.model_type}'")
        try:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # a config's values can fail anywhere in a family's constructor
            raise DehvfError(f"transformers cannot build a '{config.model_type}' decoder: {first_line(error)}") from error

    def load(self, sources: Mapping[str, Source], device_map: Any = None) -> PreTrainedModel:
        """The decoder with its weights.

        Args:
            sources: models that plugins supply, by name.
            device_map: where transformers puts the weights; None: on the CPU.

        Raises:
            DehvfError: where the weights are not on this machine, or cannot be loaded, or some are missing, which transformers
                would leave random.
        """
        from transformers import AutoModelForCausalLM

        location = self.location(sources)
        require_local(location, self.download)
        quantised: dict[str, Any] = {}
        placed = {} if device_map is None else {"device_map": device_map}
        if self.quantization is not None:
            from dehvf_kit.backbones.quantization import checkpoint_method, quantization_config

            before = checkpoint_method(self.hf_config(sources))
            if before:
                raise DehvfError(
                    f"decoder.quantization={self.quantization}: the checkpoint '{self.model}' is quantised already ({before}); "
                    "leave the field out, or give the float checkpoint"
                )
            quantised = {"quantization_config": quantization_config(self.quantization, torch_dtype(self.dtype))}
        if self.original(sources):
            from dehvf_kit.backbones.llama_original import load_original

            if quantised:
                raise DehvfError(
                    "decoder.quantization: LLaMA in its original layout cannot be quantised as it loads; convert the folder "
                    "to the transformers layout, or leave the field out"
                )
            if placed:
                raise DehvfError("device_map: LLaMA in its original layout loads on the CPU; move the model with `.to(device)`")
            return load_original(location, torch_dtype(self.dtype), self.attn_implementation)
        decoder: PreTrainedModel
        info: dict[str, Any]
        try:
            decoder, info = AutoModelForCausalLM.from_pretrained(
                location,
                dtype=torch_dtype(self.dtype),
                attn_implementation=self.attn_implementation,
                output_loading_info=True,
                **self.hub_arguments(),
                **quantised,
                **placed,
            )
        except Exception as error:  # whatever is in the folder's files: a pickle, half a file, other shapes
            raise not_loaded(error, "decoder", "decoder", self.model, location) from error
        refuse_missing(self.model, decoder, info["missing_keys"], "language model", "decoder")
        return decoder

    def tokenizer(self, sources: Mapping[str, Source]) -> PreTrainedTokenizerBase:
        """The decoder's tokenizer, with a padding token. Raises: DehvfError where it is not on this machine."""
        from transformers import AutoTokenizer

        location = self.location(sources)
        require_local(location, self.download)
        if self.original(sources):
            from dehvf_kit.backbones.llama_original import original_tokenizer

            return prepare_tokenizer(original_tokenizer(location))
        try:
            tokenizer = AutoTokenizer.from_pretrained(location, **self.hub_arguments())
        except Exception as error:  # whatever is in the folder's files
            raise DehvfError(f"the tokenizer of '{self.model}' cannot be loaded: {first_line(error)}") from error
        return prepare_tokenizer(tokenizer)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Left padding for generation, saved files too, and the end token as padding where a family has none (LLaMA)."""
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs["padding_side"] = "left"  # what `save_pretrained` writes
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def decoder_spec(decoder: nn.Module) -> DecoderSpec:
    """Sizes of a decoder that is in memory, on whichever device. Raises: DecoderError if its FFNs differ in width."""
    from dehvf_kit.backbones.ffn.sites import ffn_sites
    from dehvf_kit.backbones.ffn.structure import linear_shape

    sites = ffn_sites(decoder)
    widths = sorted({site.hidden_size for site in sites})
    if len(widths) > 1:
        raise DecoderError(f"{type(decoder).__name__}: its feed-forward networks have widths {widths}; one is needed")
    try:
        heads = {name: size for name, size in vars(attention_sites(decoder)[0]).items() if name not in ("layer_idx", "path")}
    except DecoderError:
        heads = {}
    text = text_config(decoder)
    return DecoderSpec(
        hidden_size=widths[0],
        num_layers=len(sites),
        vocab_size=config_size(text, "vocab_size") or 0,
        intermediate_size=config_size(text, "intermediate_size"),
        num_parameters=num_weights(decoder),
        activation=sites[0].activation_name,
        model_type=getattr(getattr(decoder, "config", None), "model_type", type(decoder).__name__),
        max_positions=max_positions(decoder),
        modules={
            path: (
                type(part).__name__,
                linear_shape(part),
                {name: tuple(p.shape) for name, p in part.named_parameters(recurse=False)},
            )
            for path, part in decoder.named_modules()
        },
        **heads,
    )


def max_positions(decoder: nn.Module) -> int | None:
    """Tokens that a decoder has positions for, as its config says; None where it names no limit."""
    from torch import nn

    limit = config_size(text_config(decoder), *POSITIONS)
    for name, module in decoder.named_modules():
        if limit and isinstance(module, nn.Embedding) and module.padding_idx is not None and "position" in name:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)  # RoBERTa's begin after the padding
    return limit


def is_original(folder: str | Path) -> bool:
    """Whether a folder holds this layout and not transformers' own."""
    return os.path.isfile(os.path.join(folder, "params.json")) and not os.path.isfile(os.path.join(folder, "config.json"))


def num_weights(module: nn.Module) -> int:
    """How many weights a module has, also where two of them share a byte or processes share them."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in module.parameters())
    return sum(parameter.numel() if state is None else state.shape.numel() for parameter, state in states)


@dataclass(frozen=True)
class AttentionSite:
    """One layer's attention: its place, its path in the model, and its heads, of which several may share one key head."""

    layer_idx: int
    path: str
    num_heads: int
    num_key_value_heads: int
    head_dim: int


def attention_sites(decoder: nn.Module) -> list[AttentionSite]:
    """The attention of every layer that has a feed-forward network, in the order they run; its sizes as the config has them.

    A layer's attention is its one module that calls transformers' attention interface, cross-attention left out, whatever its
    maps are. Raises: DecoderError where a layer has none, or several, saying what was looked for, or the config names no heads.
    """
    from dehvf_kit.backbones.ffn.sites import ffn_sites

    paths = {site.layer_idx: _attention(decoder, site.layer_idx, site.layer_path) for site in ffn_sites(decoder)}
    if len(sizes := head_sizes(text_config(decoder))) <= max(paths):
        raise DecoderError(f"{type(decoder).__name__}: its config names the heads of {len(sizes)} layers; {len(paths)} are needed")
    return [AttentionSite(index, path, *sizes[index]) for index, path in paths.items()]


def _attention(decoder: nn.Module, index: int, layer_path: str) -> str:
    layer = decoder.get_submodule(layer_path)
    found = [path for path, module in layer.named_modules() if attends(module) and not re.search(r"cross|encoder_", path, re.I)]
    if len(found) != 1:
        raise DecoderError(
            f"{type(decoder).__name__}: no attention was found in layer {index} ({layer_path}). Looked for: one module that calls "
            f"transformers' attention interface; the layer has {listing(found or [name for name, _ in layer.named_children()])}"
        )
    return f"{layer_path}.{found[0]}".rstrip(".")


def attends(module: nn.Module) -> bool:
    """Whether a module calls transformers' attention interface, with queries, keys and values by head."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names
