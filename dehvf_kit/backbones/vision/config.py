"""A vision transformer in a recipe: its transformers class, its weights, and how images become its pixel values.

Weights are also loaded from the checkpoint of a larger model that holds the encoder (LLaVA, Qwen-VL, BLIP-2). Images are prepared
as the recipe says, which is compared with what the checkpoint's own processor does.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from dehvf_kit.api.config import Settings
from dehvf_kit.api.registry import Source
from dehvf_kit.api.shapes import VisionSpec
from dehvf_kit.backbones.base import TowerConfig, first_line, not_loaded, refuse_missing, require_local, torch_dtype, vision_config
from dehvf_kit.backbones.known_specs import clip_vision_spec
from dehvf_kit.errors import DehvfError, VisionError

if TYPE_CHECKING:
    from torch import nn
    from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel

    from dehvf_kit.backbones.vision.tower import VisionTower

Normalisation = Literal["imagenet", "clip", "half", "none"]
MEAN_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Names of Pillow's filters -> its numbers for them."""
RESCALE = 1 / 255
NEAR = 1e-3
"""Means and deviations nearer than this are the same: it is a quarter of one step of 8 bits."""
FILES = ("preprocessor_config.json", "processor_config.json")
Colours = tuple[float, float, float]
Deviations = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
NOT_IN_FEATURES = ("pool", "head", "mask_token")
"""In names of weights that no feature depends on, wherever they stand: poolers, heads, and tokens of masked training."""
AFTER = re.compile("classifier|projection|decoder|logit|fc_norm")
"""In names of weights behind an encoder's final norm; inside its blocks and embeddings these words say nothing."""
_KNOWN_STEPS = {"resize", "rescale", "normalize", "center_crop", "convert_rgb"}


class ImageConfig(Settings):
    """How an image becomes pixel values: RGB, resized, multiplied, normalised. Fields that are left out keep their defaults."""

    size: int = Field(224, ge=1, le=16384, description="side in pixels of the square the encoder sees")
    resize: Literal["squash", "crop"] = Field("squash", description="squash to a square, or resize and crop the middle")
    normalisation: Normalisation = Field("imagenet", description="mean and deviation: imagenet, clip, half or none")
    mean: Colours | None = Field(None, description="mean of red, green and blue, in place of normalisation's")
    std: Deviations | None = Field(None, description="deviation of red, green and blue, in place of normalisation's")
    rescale: float | None = Field(None, gt=0, description="factor on the values 0 to 255 before normalising; null: 1/255")
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] | None = Field(
        None, description="filter of resizing; null: bicubic"
    )
    resize_to: int | None = Field(
        None, ge=1, le=16384, description="side it is resized to before the middle of `size` is cut out; null: size"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("given one of mean and std; wants both, or neither for those of normalisation")
        if self.resize_to is not None and self.resize_to < self.size:
            raise ValueError(f"given resize_to {self.resize_to}; wants at least size, {self.size}")
        return self

    @property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the colours."""
        return MEAN_STD[self.normalisation] if self.mean is None or self.std is None else (self.mean, self.std)

    def facts(self) -> dict[str, Any]:
        """All that decides the pixel values, with nothing left out."""
        mean, std = self.mean_std
        return {
            "size": self.size,
            "resize": self.resize,
            "resize_to": self.resize_to or self.size,
            "resample": self.resample or "bicubic",
            "rescale": RESCALE if self.rescale is None else self.rescale,
            "mean": mean,
            "std": std,
        }

    def processor(self) -> BaseImageProcessor:
        """A transformers image processor (PIL and numpy, no torchvision) with these settings."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        facts = self.facts()
        square = {"height": self.size, "width": self.size}
        side, crop = facts["resize_to"], self.resize == "crop"
        return CLIPImageProcessorPil(
            size={"shortest_edge": side} if crop else {"height": side, "width": side},
            do_center_crop=crop or side != self.size,
            crop_size=square,
            image_mean=list(facts["mean"]),
            image_std=list(facts["std"]),
            rescale_factor=facts["rescale"],
            resample=RESAMPLE[facts["resample"]],
        )


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
    Raises: OSError where there is no checkpoint; DehvfError where it lacks weights that features depend on, which
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
    refuse_missing(location, model, missing, "encoder", "vision")
    model.unloaded_weights = frozenset(info["missing_keys"])
    return model


def _needed(model: PreTrainedModel, missing: Iterable[str]) -> list[str]:
    """The missing weights that features depend on: all but those of what follows the final norm, and of masked training."""
    from dehvf_kit.backbones.ffn.sites import ffn_sites

    blocks = tuple({f"{site.layer_path}." for site in ffn_sites(model)})
    return [
        name
        for name in missing
        if not any(word in name for word in NOT_IN_FEATURES)
        and (name.startswith(blocks) or "embed" in name or not AFTER.search(name))
    ]


def _prefix(wanted: Iterable[str], found: Iterable[str]) -> str | None:
    """What stands before most of the wanted names among the names found (`model.visual.`); None where nothing does."""
    names, counts = set(wanted), Counter[str]()
    for name in found:
        parts = name.split(".")
        cuts = (".".join(parts[:length]) for length in range(1, len(parts)))
        counts.update(f"{cut}." for cut in cuts if name[len(cut) + 1 :] in names)
    return counts.most_common(1)[0][0] if counts else None


@dataclass(frozen=True)
class OwnImages:
    """What a checkpoint's own image processor does.

    facts: those of `ImageConfig.facts` that it fixes. further: what else it does, which the kit does not. source: its name.
    """

    facts: Mapping[str, Any]
    source: str
    further: tuple[str, ...] = field(default=())

    def differences(self, image: ImageConfig) -> dict[str, Any]:
        """The facts in which a recipe's images differ, as this processor has them."""
        mine = image.facts()
        return {name: value for name, value in self.facts.items() if not _same(value, mine[name])}

    def fields(self) -> dict[str, Any]:
        """The fields of `ImageConfig` that prepare images in this way."""
        found = {name: self.facts[name] for name in ("size", "resize") if name in self.facts}
        pair = (self.facts["mean"], self.facts["std"])
        named = next((name for name, known in MEAN_STD.items() if _same(pair[0], known[0]) and _same(pair[1], known[1])), None)
        found |= {"normalisation": named} if named else {"mean": list(pair[0]), "std": list(pair[1])}
        usual = {"rescale": RESCALE, "resample": "bicubic", "resize_to": self.facts.get("size")}
        for name, value in usual.items():
            if name in self.facts and not _same(self.facts[name], value):
                found[name] = self.facts[name]
        return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) or isinstance(other, float):
        return bool(abs(one - other) <= NEAR * min(1.0, max(abs(one), abs(other))))
    return bool(one == other)


def said(facts: Mapping[str, Any]) -> str:
    """Facts about images in words: `224 x 224 (crop, from 256), bicubic, times 1/255, mean 0.5 0.5 0.5, std 0.5 0.5 0.5`."""
    words = []
    if "size" in facts:
        side = facts.get("resize_to", facts["size"])
        origin = "" if side == facts["size"] else f", from {side}"
        words.append(f"{facts['size']} x {facts['size']}" + (f" ({facts['resize']}{origin})" if "resize" in facts else ""))
    elif "resize_to" in facts:
        words.append(f"resized to {facts['resize_to']} first")
    if "size" not in facts and "resize" in facts:
        words.append(facts["resize"])
    if "resample" in facts:
        words.append(facts["resample"])
    if "rescale" in facts:
        words.append(f"times {'1/255' if _same(facts['rescale'], RESCALE) else format(facts['rescale'], 'g')}")
    if "mean" in facts and "std" in facts and (facts["mean"], facts["std"]) == MEAN_STD["none"]:
        return ", ".join([*words, "not normalised"])
    words += [f"{name} " + " ".join(format(value, "g") for value in facts[name]) for name in ("mean", "std") if name in facts]
    return ", ".join(words)


def own_images(location: str, download: bool = False, trust_remote_code: bool = False, **hub: Any) -> OwnImages | None:
    """What the image processor beside a checkpoint does; None where there is none on this machine that can be read.

    location: a folder or hub id. download: fetch what is not in the hub's cache. hub: `revision`, `cache_dir`, `token`.
    """
    if not (download and not os.path.isdir(location)) and not any(_at_hand(location, name, hub) for name in FILES):
        return None
    from transformers import AutoImageProcessor, ImageProcessingMixin

    reads: Any = AutoImageProcessor
    hub = {**hub, "local_files_only": not download}
    try:
        return facts_of(reads.from_pretrained(location, backend="pil", trust_remote_code=trust_remote_code, **hub).to_dict())
    except Exception:  # a class that needs code or a library that is not here: what its file spells out remains
        try:
            return facts_of(ImageProcessingMixin.get_image_processor_dict(location, **hub)[0])
        except Exception:  # whatever is in the folder's files
            return None


def _at_hand(location: str, name: str, hub: Mapping[str, Any]) -> bool:
    if os.path.isdir(location):
        return os.path.isfile(os.path.join(location, name))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(location, name, cache_dir=hub.get("cache_dir"), revision=hub.get("revision"))
    except HFValidationError:
        return False
    return isinstance(found, str)


def facts_of(values: Mapping[str, Any]) -> OwnImages:
    """What a transformers image processor with these settings does (the content of `preprocessor_config.json`)."""
    facts: dict[str, Any] = {}
    further = {name[3:] for name, value in values.items() if name.startswith("do_") and value is True} - _KNOWN_STEPS
    if values.get("do_resize", True):
        _read_size(values, facts, further)
        if values.get("resample") is not None:
            facts["resample"] = next(name for name, number in RESAMPLE.items() if number == int(values["resample"]))
    facts["rescale"] = float(values.get("rescale_factor") or RESCALE) if values.get("do_rescale", True) else 1.0
    facts["mean"], facts["std"] = MEAN_STD["none"]
    if values.get("do_normalize", values.get("image_mean") is not None) and values.get("image_mean") is not None:
        facts["mean"], facts["std"] = (_three(values[name]) for name in ("image_mean", "image_std"))
    name = values.get("image_processor_type") or values.get("feature_extractor_type") or "preprocessor_config.json"
    return OwnImages(MappingProxyType(facts), str(name), tuple(sorted(further)))


def _read_size(values: Mapping[str, Any], facts: dict[str, Any], further: set[str]) -> None:
    """Add the size that images get, where it is one square for all of them."""
    size = values.get("size")
    size = {"height": size, "width": size} if isinstance(size, int) else dict(size or {})
    side = _square(size)
    if values.get("do_center_crop"):
        crop = values.get("crop_size")
        middle = crop if isinstance(crop, int) else _square(crop or {})
        edge = size.get("shortest_edge")
        if middle is not None and (side or edge):
            facts |= {"size": middle, "resize": "squash" if side else "crop", "resize_to": side or edge}
    elif side is not None:
        facts |= {"size": side, "resize": "squash", "resize_to": side}
    if "size" not in facts:
        further.add("sizes_by_aspect_ratio")


def _square(size: Mapping[str, Any]) -> int | None:
    height, width = size.get("height"), size.get("width")
    return height if isinstance(height, int) and height == width else None


def _three(values: Any) -> tuple[float, ...]:
    numbers = [float(value) for value in (values if isinstance(values, (list, tuple)) else [values])]
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)
