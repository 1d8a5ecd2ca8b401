"""A vision transformer from transformers that hands out, per block, its patch tokens and one global token."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from dehvf_kit.backbones.base import TowerConfig, first_line, require_local, torch_dtype
from dehvf_kit.backbones.ffn_sites import ffn_sites
from dehvf_kit.backbones.ffn_structure import is_norm
from dehvf_kit.config import Settings
from dehvf_kit.errors import DecoderError, DehvfError, VisionError
from dehvf_kit.registry import Source
from dehvf_kit.shapes import VisionSpec

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel

Normalisation = Literal["imagenet", "clip", "half"]
MEAN_STD: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class ImageConfig(Settings):
    """How a picture becomes pixel values: RGB, resized with bicubic interpolation, scaled to 0..1, normalised."""

    size: int = Field(224, ge=1, description="side in pixels of the square the encoder sees")
    resize: Literal["squash", "crop"] = Field("squash", description="squash to a square, or resize and crop the middle")
    normalisation: Normalisation = Field("imagenet", description="mean and deviation: imagenet, clip or half")

    def processor(self) -> BaseImageProcessor:
        """A transformers image processor (PIL and numpy, no torchvision) with these settings."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        mean, std = MEAN_STD[self.normalisation]
        square = {"height": self.size, "width": self.size}
        crop = self.resize == "crop"
        return CLIPImageProcessorPil(
            size={"shortest_edge": self.size} if crop else square,
            do_center_crop=crop,
            crop_size=square,
            image_mean=list(mean),
            image_std=list(std),
            resample=3,
        )


class HfVisionConfig(TowerConfig):
    """A transformers vision transformer: CLIP, SigLIP, ViT, DINOv2 and their like."""

    role: ClassVar[str] = "vision"
    type: Literal["hf"] = "hf"
    image: ImageConfig = Field(default_factory=ImageConfig, description="size and normalisation of its pictures")
    apply_post_norm: bool = Field(True, description="pass every layer through the encoder's own final norm (choice)")

    @field_validator("image", mode="before")
    @classmethod
    def _image(cls, value: Any) -> Any:
        return {} if value is None else value

    def spec(self, sources: Mapping[str, Source]) -> VisionSpec:
        """Sizes of the encoder, from its config alone."""
        return self.tower(self.meta(sources)).spec

    def meta(self, sources: Mapping[str, Source]) -> PreTrainedModel:
        """The encoder on the meta device."""
        config = vision_config(self.hf_config(sources))
        try:
            with torch.device("meta"):
                return vision_class(config)._from_config(config)
        except DehvfError:
            raise
        except Exception as error:  # a config's values can fail anywhere in a family's constructor
            raise DehvfError(f"transformers cannot build a '{config.model_type}' encoder: {first_line(error)}") from error

    def load(self, sources: Mapping[str, Source]) -> PreTrainedModel:
        """The encoder with its weights. Raises: DehvfError where they are not on this machine."""
        location = self.location(sources)
        require_local(location, self.download)
        try:
            config = vision_config(self.model_copy(update={"config": None}).hf_config(sources))
            return vision_class(config).from_pretrained(
                location,
                config=config,
                dtype=torch_dtype(self.dtype),
                attn_implementation=self.attn_implementation,
                **{name: value for name, value in self.hub_arguments().items() if name != "trust_remote_code"},
            )
        except OSError as error:
            raise DehvfError(
                f"vision encoder '{self.model}' is not on this machine; give a local folder, or allow the download with "
                f"vision.download=true ({first_line(error)})"
            ) from error

    def tower(self, model: nn.Module) -> VisionTower:
        """The kit's view of an encoder that is in memory."""
        return VisionTower(model, self.image.size, self.apply_post_norm)


def vision_config(config: PretrainedConfig) -> PretrainedConfig:
    """The vision half of a two-tower config (CLIP, SigLIP), or the config itself."""
    return getattr(config, "vision_config", config)


def vision_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The transformers class of a vision config. Raises: VisionError if transformers has none."""
    from transformers import AutoModel

    try:
        return AutoModel._model_mapping[type(config)]
    except KeyError as error:
        raise VisionError(f"transformers has no vision encoder for model_type '{config.model_type}'") from error


class VisionTower(nn.Module):
    """An encoder whose blocks can be read one by one; the encoder itself stays the user's module, unchanged.

    layers: the 0-based blocks that are read, shallow to deep. Source: DEHVF, equation 1.
    """

    def __init__(self, model: nn.Module, image_size: int, apply_post_norm: bool = True) -> None:
        super().__init__()
        self.model = model
        try:
            sites = ffn_sites(model)
        except DecoderError as error:
            raise VisionError(f"{type(model).__name__} is not a vision transformer the kit can read: {error}") from error
        widths = sorted({site.hidden_size for site in sites})
        if len(widths) > 1:
            raise VisionError(f"{type(model).__name__}: its blocks have widths {widths}; the kit reads encoders of one width")
        paths = list(dict.fromkeys(site.layer_path for site in sites))
        self.blocks = [model.get_submodule(path) for path in paths]
        self.post_norm = _final_norm(model, paths[0]) if apply_post_norm else None
        config = vision_config(model.config) if hasattr(model, "config") else None
        self.patch_size = _pair(getattr(config, "patch_size", None))
        if self.patch_size is None:
            raise VisionError(f"{type(model).__name__}: its config names no patch_size")
        rows, columns = (image_size // side for side in self.patch_size)
        if not rows or not columns:
            raise VisionError(f"an image of {image_size} pixels is smaller than a patch of {self.patch_size} pixels")
        self.native_size = getattr(config, "image_size", None)
        self.layers: tuple[int, ...] = tuple(range(len(self.blocks)))
        self.spec = VisionSpec(
            hidden_size=widths[0],
            num_layers=len(self.blocks),
            num_patches=rows * columns,
            image_size=image_size,
            intermediate_size=getattr(config, "intermediate_size", None),
            model_type=getattr(config, "model_type", type(model).__name__),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images [image, 3, height, width] -> features [image, layer, 1 + patch, vision_hidden], global token first.

        The global token is the class token, or the mean of the patch tokens where the encoder has none. Raises:
        VisionError where a block does not yield one token a patch.
        """
        dtype = next(self.model.parameters()).dtype
        rows, columns = (pixels // side for pixels, side in zip(pixel_values.shape[-2:], self.patch_size, strict=True))
        if not rows or not columns:
            raise VisionError(f"an image of {tuple(pixel_values.shape[-2:])} pixels is smaller than a patch of {self.patch_size}")
        arguments = self._arguments(pixel_values)
        features = []
        for tokens in self._run(pixel_values.to(dtype), arguments):
            if self.post_norm is not None:
                tokens = self.post_norm(tokens)
            prefix = tokens.shape[1] - rows * columns
            if tokens.ndim != 3 or prefix < 0:
                raise VisionError(
                    f"{type(self.model).__name__}: a block yields {tuple(tokens.shape)}, not one token for each of "
                    f"{rows} x {columns} patches"
                )
            patches = tokens[:, prefix:]
            first = tokens[:, :1] if prefix else patches.mean(1, keepdim=True)
            features.append(torch.cat([first, patches], dim=1))
        return torch.stack(features, dim=1)

    def _arguments(self, pixel_values: Tensor) -> dict[str, Any]:
        native = _pair(self.native_size)
        takes = inspect.signature(self.model.forward).parameters
        resized = native is not None and tuple(pixel_values.shape[-2:]) != native
        return {"interpolate_pos_encoding": True} if resized and "interpolate_pos_encoding" in takes else {}

    def _run(self, pixel_values: Tensor, arguments: dict[str, Any]) -> Sequence[Tensor]:
        """Outputs of the blocks that are read."""
        outputs: dict[int, Tensor] = {}

        def keep(layer: int) -> Any:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                outputs[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        handles = [self.blocks[layer].register_forward_hook(keep(layer)) for layer in self.layers]
        try:
            self.model(pixel_values, **arguments)
        finally:
            for handle in handles:
                handle.remove()
        return [outputs[layer] for layer in self.layers]


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Sequence) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None


def _final_norm(model: nn.Module, first_block: str) -> nn.Module | None:
    """The norm that follows the blocks: the last norm among the later siblings of their list, or of its parents."""
    parts = first_block.split(".")
    for depth in range(len(parts) - 2, -1, -1):
        parent = model.get_submodule(".".join(parts[:depth]))
        names = [name for name, _ in parent.named_children()]
        later = names[names.index(parts[depth]) + 1 :]
        norms = [parent.get_submodule(name) for name in later if is_norm(parent.get_submodule(name))]
        if norms:
            return norms[0]
    return None
