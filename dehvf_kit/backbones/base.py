"""What decoder and vision towers share in a recipe: where a base model comes from, and how its config is read.

A model is named by a source that a plugin supplies, by a local folder, or by a hub id. Nothing is downloaded unless the
recipe says `download: true`, and no remote code runs unless it says `trust_remote_code: true`.

A config may hold values that differ between layers (`per_layer_config`: Gemma 4, dots3_note). Reading such a field from the
whole config raises a RuntimeError, which `getattr(config, name, None)` lets through; `config_value` and its like read it.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PrivateAttr

from dehvf_kit.api.config import Settings
from dehvf_kit.api.registry import Source
from dehvf_kit.api.shapes import MAX_LAYERS
from dehvf_kit.errors import DehvfError, RemoteCodeWarning, did_you_mean, listing, shown

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

DEPTH = re.compile(r"(layers|layer|depth|experts)$")
"""The ends of the names of config fields that say how many modules there are."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class NoConfig(DehvfError):
    """A base model's config is not on this machine, and the recipe does not carry it."""


class TowerConfig(Settings):
    """Parent of the tower configs: a base model in the transformers format."""

    model: str = Field("", description="a name supplied by a plugin, a local folder, or a hub id")
    revision: str | None = Field(None, description="hub branch, tag or commit")
    config: dict[str, Any] | None = Field(None, description="transformers config, for checks without the model at hand")
    dtype: Dtype = Field("auto", description="dtype of the frozen weights; auto: as saved")
    attn_implementation: str | None = Field(None, description="attention of transformers: sdpa, eager, flash_attention_2")
    download: bool = Field(False, description="allow fetching from the hub what is not on this machine")
    trust_remote_code: bool = Field(False, description="run model code that comes with the checkpoint")
    _hub: dict[str, Any] = PrivateAttr(default_factory=dict)

    def with_hub(self, **arguments: Any) -> Self:
        """A copy that passes further keywords (`token`, `cache_dir`, `local_files_only`) to `from_pretrained`; never saved."""
        copied = self.model_copy()
        copied._hub = arguments
        return copied

    def hub_arguments(self) -> dict[str, Any]:
        """Keywords for `from_pretrained` that say where to look and what is allowed; warns where code will be run."""
        self.warn_of_code()
        return {
            "revision": self.revision,
            "local_files_only": not self.download,
            "trust_remote_code": self.trust_remote_code,
            **self._hub,
        }

    def warn_of_code(self) -> None:
        """Say aloud that code of the checkpoint is run, where the recipe allows it."""
        if self.trust_remote_code:
            named = f"'{self.model}'" if self.model else "the model named in its config"
            message = f"trust_remote_code is true: Python code that comes with {named} is run on this machine"
            warnings.warn(message, RemoteCodeWarning, stacklevel=3)

    def location(self, sources: Mapping[str, Source]) -> str:
        """A folder or hub id for `from_pretrained`. Raises: DehvfError where no model is named."""
        if self.model in sources:
            return str(sources[self.model].path())
        if not self.model:
            raise DehvfError("no model is named; set `model:` to a local folder, a hub id or a name from `dehvf-kit list`")
        return os.path.expanduser(self.model)

    def hf_config(self, sources: Mapping[str, Source]) -> PretrainedConfig:
        """The transformers config: from the recipe, a plugin, a local folder, or the hub's cache.

        Raises: NoConfig where it is not on this machine, DehvfError where it cannot be read.
        """
        if self.config is not None:
            return config_from_dict(self.config)
        if self.model in sources:
            return config_from_dict(sources[self.model].config())
        from transformers import AutoConfig

        try:
            return refuse_depth(AutoConfig.from_pretrained(self.location(sources), **self.hub_arguments()))
        except OSError as error:
            if os.path.isfile(os.path.join(self.location(sources), "config.json")):
                raise DehvfError(f"the config of '{self.model}' cannot be read: {first_line(error)}") from error
            raise NoConfig(
                f"no config of '{self.model}' on this machine; give a local folder, write the config under `config:`, "
                "or allow the download with `download: true`"
            ) from error
        except DehvfError:
            raise
        except Exception as error:  # whatever is in a folder's config.json
            raise DehvfError(f"the config of '{self.model}' cannot be read: {first_line(error)}") from error


def config_from_dict(values: Mapping[str, Any]) -> PretrainedConfig:
    """A transformers config from plain values with a `model_type`. Raises: DehvfError naming what is missing or wrong."""
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = dict(values)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise DehvfError("a config needs `model_type`, for example llama or clip_vision_model")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        near = did_you_mean(kind, CONFIG_MAPPING).removesuffix(".")
        raise DehvfError(f"transformers has no model_type {shown(kind)}{near}")
    try:
        return refuse_depth(AutoConfig.for_model(kind, **fields))
    except DehvfError:
        raise
    except Exception as error:  # transformers validates configs with exceptions of several kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DehvfError(f"transformers refuses this config of model_type '{kind}': {reason}") from error


def vision_config(config: Any) -> Any:
    """The vision half of a two-tower config (CLIP, SigLIP), or the config itself; None of a model without one."""
    return getattr(config, "vision_config", config)


def refuse_depth(config: PretrainedConfig) -> PretrainedConfig:
    """The config, if it has no more layers than a model can have. Raises: DehvfError: each would be built, even to check."""
    waiting: list[tuple[str, Any]] = [("", config.to_dict())]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
        elif isinstance(value, int) and value > MAX_LAYERS and DEPTH.search(path):
            raise DehvfError(f"config.{path}: given {shown(value)}; wants {MAX_LAYERS} or less")
    return config


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def not_loaded(error: Exception, what: str, field: str, model: str, location: str) -> DehvfError:
    """What to raise for a base model that did not load: not there, or whatever is in its files.

    what: as messages call it; field: the recipe's section of it.
    """
    if isinstance(error, OSError) and not os.path.isdir(location):
        return DehvfError(
            f"{what} '{model}' is not on this machine; give a local folder, or allow the download with "
            f"{field}.download=true ({first_line(error)})"
        )
    return DehvfError(f"{what} '{model}' cannot be loaded: {first_line(error)}")


def refuse_missing(location: str, model: Any, missing: Iterable[str], what: str, argument: str) -> None:
    """Raises: DehvfError where a checkpoint lacks weights, which transformers would leave random.

    what: the part of a model that is wanted; argument: of `build`, which takes it from memory.
    """
    names = sorted(missing)
    if names:
        raise DehvfError(
            f"'{location}' lacks {len(names)} weights of {type(model).__name__}, for example {listing(names[:2])}; "
            f"give a checkpoint of the {what} itself, or load it yourself and hand it over as build({argument}=...)"
        )


def torch_dtype(name: Dtype) -> torch.dtype | Literal["auto"]:
    """The torch dtype of a recipe's name."""
    import torch

    return "auto" if name == "auto" else getattr(torch, name)


def require_local(location: str, download: bool) -> None:
    """Refuse a path that is plainly meant as a local folder and is not there. Raises: DehvfError."""
    looks_local = location.startswith((".", "/", "~")) or location.count("/") > 1
    if looks_local and not os.path.isdir(location):
        raise DehvfError(f"there is no folder '{location}'")


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
