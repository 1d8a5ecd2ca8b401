"""The transformers config that marks a folder as a DEHVF adapter."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

SIZES = frozenset(
    ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    + ("intermediate_size", "max_position_embeddings")
)
TEXT = "_decoder_config"


class DehvfConfig(PretrainedConfig):
    """Says `model_type: dehvf`; what was built is stored in `dehvf_config.json` beside it.

    A built model's config has its decoder's sizes and text config, which are never saved.
    """

    model_type = "dehvf"

    def read_sizes_of(self, decoder: Any) -> None:
        """Answer for the sizes of a decoder."""
        self.__dict__[TEXT] = getattr(decoder, "config", None)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The decoder's text config; of a config without a model, itself. Arguments as transformers' method has them, unused."""
        text = self.__dict__.get(TEXT)
        return self if text is None else text.get_text_config(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in SIZES and self.__dict__.get(TEXT) is not None:
            return getattr(self.get_text_config(decoder=True), name)
        raise AttributeError(f"DehvfConfig has no '{name}'")

    def to_dict(self) -> dict[str, Any]:
        """The config without the decoder's."""
        plain = DehvfConfig.__new__(DehvfConfig)
        plain.__dict__.update({key: value for key, value in self.__dict__.items() if key != TEXT})
        return PretrainedConfig.to_dict(plain)
