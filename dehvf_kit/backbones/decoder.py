"""A decoder language model from transformers, of any family that has feed-forward networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dehvf_kit.api.registry import Source
from dehvf_kit.api.shapes import DecoderSpec
from dehvf_kit.backbones.base import TowerConfig, first_line, not_loaded, require_local, torch_dtype
from dehvf_kit.backbones.known_specs import llama_spec
from dehvf_kit.backbones.quantization import Quantization, num_weights, quantization_config
from dehvf_kit.errors import DecoderError, DehvfError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class HfDecoderConfig(TowerConfig):
    """A transformers decoder, or a folder with LLaMA as Meta released it; its parts are found by structure."""

    role: ClassVar[str] = "decoder"
    type: Literal["hf"] = "hf"
    quantization: Quantization | None = Field(
        None, description="frozen linear layers in 8 or 4 bits (int8, int4); needs the extra quantization"
    )

    def original(self, sources: Mapping[str, Source]) -> str | None:
        """The folder, where the model is LLaMA in its original layout (params.json, consolidated.*.pth)."""
        from dehvf_kit.backbones.llama_original import is_original

        location = self.location(sources) if self.model and self.model not in sources else ""
        return location if location and is_original(location) else None

    def hf_config(self, sources: Mapping[str, Source]) -> PretrainedConfig:
        from dehvf_kit.backbones.llama_original import original_config

        folder = None if self.config is not None else self.original(sources)
        return super().hf_config(sources) if folder is None else original_config(folder)

    def spec(self, sources: Mapping[str, Source]) -> DecoderSpec:
        """Sizes of the decoder, from its config alone."""
        known = None if self.trust_remote_code else llama_spec(self.config)
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
            raise DehvfError(
                f"transformers cannot build a '{config.model_type}' decoder: {first_line(error)}"
            ) from error

    def load(self, sources: Mapping[str, Source], device_map: Any = None) -> PreTrainedModel:
        """The decoder with its weights.

        Args:
            sources: models that plugins supply, by name.
            device_map: where transformers puts the weights; None: on the CPU.

        Raises:
            DehvfError: where the weights are not on this machine, or cannot be loaded.
        """
        from transformers import AutoModelForCausalLM

        location = self.location(sources)
        require_local(location, self.download)
        quantised: dict[str, Any] = {}
        placed = {} if device_map is None else {"device_map": device_map}
        if self.quantization is not None:
            quantised = {"quantization_config": quantization_config(self.quantization, torch_dtype(self.dtype))}
        if self.original(sources):
            from dehvf_kit.backbones.llama_original import load_original

            if quantised:
                raise DehvfError(
                    "decoder.quantization: LLaMA in its original layout cannot be quantised as it loads; convert the folder "
                    "to the transformers layout, or leave the field out"
                )
            if placed:
                raise DehvfError(
                    "device_map: LLaMA in its original layout loads on the CPU; move the model with `.to(device)`"
                )
            return load_original(location, torch_dtype(self.dtype), self.attn_implementation)
        try:
            return AutoModelForCausalLM.from_pretrained(
                location,
                dtype=torch_dtype(self.dtype),
                attn_implementation=self.attn_implementation,
                **self.hub_arguments(),
                **quantised,
                **placed,
            )
        except Exception as error:  # whatever stands in the folder's files: a pickle, half a file, other shapes
            raise not_loaded(error, "decoder", "decoder", self.model, location) from error

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
        except Exception as error:  # whatever stands in the folder's files
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
    from dehvf_kit.backbones.attention_sites import attention_sites
    from dehvf_kit.backbones.ffn.sites import ffn_sites

    sites = ffn_sites(decoder)
    widths = sorted({site.hidden_size for site in sites})
    if len(widths) > 1:
        raise DecoderError(f"{type(decoder).__name__}: its feed-forward networks have widths {widths}; one is needed")
    try:
        attention = attention_sites(decoder)[0]
        heads = attention.num_heads, attention.num_key_value_heads, attention.head_dim
    except DecoderError:
        heads = 0, 0, 0
    config = getattr(decoder, "config", None)
    text = config.get_text_config(decoder=True) if config is not None else None
    return DecoderSpec(
        hidden_size=widths[0],
        num_layers=len(sites),
        vocab_size=getattr(text, "vocab_size", 0) or 0,
        intermediate_size=getattr(text, "intermediate_size", None),
        num_parameters=num_weights(decoder),
        activation=sites[0].activation_name,
        model_type=getattr(config, "model_type", type(decoder).__name__),
        num_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=heads[2],
    )
