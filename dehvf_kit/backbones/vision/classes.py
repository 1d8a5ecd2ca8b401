"""Which transformers class encodes the pictures of a configuration."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from dehvf_kit.errors import VisionError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


def vision_config(config: Any) -> Any:
    """The vision half of a two-tower config (CLIP, SigLIP), or the config itself; None of a model without one."""
    return getattr(config, "vision_config", config)


def vision_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The transformers class that encodes pictures for a vision config: AutoModel's, or one that stands beside it.

    Raises: VisionError if transformers has none, or none that takes pictures alone.
    """
    from transformers import AutoModel, PreTrainedModel

    known = AutoModel._model_mapping.get(type(config), ())
    candidates = list(known) if isinstance(known, tuple) else [known]
    with contextlib.suppress(ImportError):
        module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
        candidates += [
            part
            for name, part in vars(module).items()
            if isinstance(part, type)
            and issubclass(part, PreTrainedModel)
            and not re.search("For[A-Z]", name)
            and part.config_class is type(config)
            and "forward" in vars(part)
        ]
    for wanted in (("pixel_values",), ("hidden_states", "image")):
        for candidate in candidates:
            takes = list(inspect.signature(candidate.forward).parameters)[1:]
            packed = "grid_thw" in takes or takes[:1] != ["hidden_states"]
            if takes and takes[0] in wanted and packed:
                return candidate
    raise VisionError(f"transformers has no encoder of pictures alone for model_type '{config.model_type}'")


def named_prefix_tokens(model: nn.Module) -> int:
    """Class and register tokens beside the patches, by the names of weights and config fields."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    registers = getattr(vision_config(getattr(model, "config", None)), "num_register_tokens", 0) or 0
    return int(bool(names & {"cls_token", "class_embedding", "class_token"})) + registers
