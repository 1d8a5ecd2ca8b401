"""A vision transformer in a recipe: its transformers class, its weights, and how images are prepared for it.

Weights are also loaded from the checkpoint of a larger model that holds the encoder (LLaVA, Qwen-VL, BLIP-2).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from dehvf_kit.api.registry import Source
from dehvf_kit.api.shapes import VisionSpec
from dehvf_kit.backbones.base import TowerConfig, first_line, not_loaded, require_local, torch_dtype, vision_config
from dehvf_kit.backbones.known_specs import clip_vision_spec
from dehvf_kit.backbones.vision.pixels import MEAN_STD, ImageConfig, OwnImages, facts_of, own_images
from dehvf_kit.errors import DehvfError, VisionError, listing

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from dehvf_kit.backbones.vision.tower import VisionTower

__all__ = ["MEAN_STD", "HfVisionConfig", "ImageConfig", "VisionTower", "vision_class", "vision_config"]


class HfVisionConfig(TowerConfig):
    """A transformers vision transformer: CLIP, SigLIP, ViT, DINOv2 and their like."""

    role: ClassVar[str] = "vision"
    type: Literal["hf"] = "hf"
    image: ImageConfig = Field(default_factory=ImageConfig, description="size and normalisation of its images")
    apply_post_norm: bool = Field(True, description="pass every layer through the encoder's own final norm (choice)")

    @field_validator("image", mode="before")
    @classmethod
    def _image(cls, value: Any) -> Any:
        return {} if value is None else value

    def spec(self, sources: Mapping[str, Source]) -> VisionSpec:
        """Sizes of the encoder, from its config alone."""
        from dehvf_kit.backbones.vision.overrides import VISION_OVERRIDES

        own = type(self).meta is HfVisionConfig.meta and type(self).tower is HfVisionConfig.tower
        plain = own and self.config is not None and not self.trust_remote_code
        plain = plain and "clip_vision_model" not in VISION_OVERRIDES
        known = clip_vision_spec(self.config, self.image.size) if plain else None
        return known or self.tower(self.meta(sources)).spec

    def meta(self, sources: Mapping[str, Source]) -> PreTrainedModel:
        """The encoder on the meta device."""
        import torch

        config = vision_config(self.hf_config(sources))
        try:
            with torch.device("meta"):
                return vision_class(config)._from_config(config)
        except DehvfError:
            raise
        except Exception as error:  # a config's values can fail anywhere in a family's constructor
            reason = first_line(error)
            raise DehvfError(f"transformers cannot build a '{config.model_type}' encoder: {reason}") from error

    def load(self, sources: Mapping[str, Source]) -> PreTrainedModel:
        """The encoder with its weights. Raises: DehvfError where they are not on this machine."""
        location = self.location(sources)
        require_local(location, self.download)
        try:
            config = vision_config(self.model_copy(update={"config": None}).hf_config(sources))
            return load_encoder(
                vision_class(config),
                location,
                config,
                dtype=torch_dtype(self.dtype),
                attn_implementation=self.attn_implementation,
                **{name: value for name, value in self.hub_arguments().items() if name != "trust_remote_code"},
            )
        except DehvfError:
            raise
        except Exception as error:  # whatever is in the folder's files: a pickle, half a file, other shapes
            raise not_loaded(error, "vision encoder", "vision", self.model, location) from error

    def own_images(self, sources: Mapping[str, Source]) -> OwnImages | None:
        """How the checkpoint's own processor prepares images; None where it has none on this machine."""
        if self.model in sources:
            preprocessor = sources[self.model].preprocessor
            return facts_of(preprocessor()) if preprocessor is not None else None
        if not self.model:
            return None
        hub = {name: value for name, value in self._hub.items() if name != "local_files_only"}
        return own_images(self.location(sources), self.download, self.trust_remote_code, revision=self.revision, **hub)

    def tower(self, model: nn.Module) -> VisionTower:
        """The kit's view of an encoder that is in memory."""
        from dehvf_kit.backbones.vision.tower import VisionTower

        return VisionTower(model, self.image.size, self.apply_post_norm)


def vision_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The transformers class that encodes images for a vision config: AutoModel's, or one of the same module.

    Raises: VisionError if transformers has none, or none that takes images alone.
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
    raise VisionError(f"transformers has no image-only encoder for model_type '{config.model_type}'")


def load_encoder(
    encoder_class: type[PreTrainedModel], location: str, config: PretrainedConfig, **arguments: Any
) -> PreTrainedModel:
    """An encoder with its weights from a folder or hub id.

    Where they stand below another name (`model.visual.blocks.0...`), the name is found among the checkpoint's keys. Weights that
    no feature depends on (poolers) may be missing; `unloaded_weights` on the encoder names them.
    Raises: OSError where there is no checkpoint; VisionError where it lacks weights that features depend on, which
    transformers would leave random.
    """
    load: Callable[..., tuple[PreTrainedModel, dict[str, Any]]] = functools.partial(
        encoder_class.from_pretrained, location, config=config, output_loading_info=True, **arguments
    )
    model, info = load()
    missing = _needed(model, info["missing_keys"])
    prefix = _prefix(missing, info["unexpected_keys"]) if missing else None
    if prefix is not None:
        model, info = load(key_mapping={f"^{re.escape(prefix)}": ""})
        missing = _needed(model, info["missing_keys"])
    if missing:
        raise VisionError(
            f"'{location}' lacks {len(missing)} weights of {type(model).__name__}, for example {listing(missing[:2])}; "
            "give a checkpoint of the encoder itself, or load it yourself and hand it over as build(vision=...)"
        )
    model.unloaded_weights = frozenset(info["missing_keys"])
    return model


def _needed(model: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """The missing weights that features depend on: those of blocks and embeddings, not of poolers and heads."""
    from dehvf_kit.backbones.ffn.sites import ffn_sites

    blocks = tuple({f"{site.layer_path}." for site in ffn_sites(model)})
    return sorted(
        name
        for name in missing
        if (name.startswith(blocks) or "embed" in name) and not any(word in name for word in ("pool", "head", "mask_token"))
    )


def _prefix(wanted: Iterable[str], found: Iterable[str]) -> str | None:
    """What stands before most of the wanted names among the names found (`model.visual.`); None where nothing does."""
    names, counts = set(wanted), Counter[str]()
    for name in found:
        parts = name.split(".")
        cuts = (".".join(parts[:length]) for length in range(1, len(parts)))
        counts.update(f"{cut}." for cut in cuts if name[len(cut) + 1 :] in names)
    return counts.most_common(1)[0][0] if counts else None


def __getattr__(name: str) -> Any:
    """`VisionTower` from here too, imported when asked for: a recipe is read without it."""
    if name == "VisionTower":
        from dehvf_kit.backbones.vision.tower import VisionTower

        return VisionTower
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
